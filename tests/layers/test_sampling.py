"""The operator of deformable attention: every backend against plain loops in float64, and its registrations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from piip.errors import ConfigError
from piip.layers import DeformAttn, deform_attn, deform_attn_reference
from piip.layers.kernels import choice, deform_attn_cpp

# Batch, heads, channels, queries, points, then height and width of every level.
SHAPES = {
    "piip": (2, 4, 6, 5, 4, (5, 7)),
    "12_channels": (1, 3, 12, 4, 4, (6, 5)),
    "24_channels": (1, 2, 24, 3, 2, (4, 4)),
    "odd_channels": (1, 3, 45, 3, 1, (3, 5)),
    "one_channel": (2, 1, 1, 3, 3, (4, 3)),
    "dino": (2, 2, 32, 7, 3, (6, 5), (3, 2), (1, 1)),
    "one_row": (1, 2, 4, 5, 2, (1, 6)),
    "one_cell": (1, 2, 8, 5, 2, (1, 1)),
    "many_queries": (1, 2, 7, 301, 4, (9, 8)),
    "many_samples": (1, 3, 4, 2, 100, (3, 3)),
}
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 2e-3}
BACKENDS = [
    pytest.param(
        module, id=name, marks=pytest.mark.skipif(bool(module.missing()), reason=f"{name}: {module.missing()}")
    )
    for name, module in choice.backends("deform_attn", "cpu").items()
]


def random_inputs(shape: tuple, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list, Tensor, Tensor, Tensor]:
    """Value, sizes of levels, locations, weights, and the gradient of the output; a third of the samples is outside.

    No sample is next to the line between two cells, where the gradient jumps.
    """
    b, heads, dim, queries, points, *levels = shape
    random = torch.Generator().manual_seed(0)
    normal = [
        (b, sum(math.prod(s) for s in levels), heads, dim),
        (b, queries, heads, len(levels), points),
        (b, queries, heads * dim),
    ]
    value, weights, grad = (torch.randn(size, generator=random, dtype=torch.float64) for size in normal)
    sides = torch.tensor([(w, h) for h, w in levels], dtype=torch.float64)[:, None]
    places = torch.rand(*weights.shape, 2, generator=random, dtype=torch.float64) * (sides * 1.5 + 2) - sides / 4 - 1
    places = places.floor() + 0.1 + 0.8 * (places - places.floor())  # in cells, whose centres are whole numbers
    locations = (places + 0.5) / sides
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    return value.to(dtype), levels, locations.to(exact), weights.to(exact), grad.to(dtype)


def plain_loops(value: Tensor, levels: list, locations: Tensor, weights: Tensor) -> Tensor:
    """The definition, sample by sample and cell by cell; differentiable."""
    b, _, heads, dim = value.shape
    out = [[value.new_zeros(dim) for _ in range(heads)] for _ in range(b * locations.shape[1])]
    for image, query, head, level, point in itertools.product(*map(range, weights.shape)):
        first, (h, w) = sum(math.prod(s) for s in levels[:level]), levels[level]
        x, y = locations[image, query, head, level, point] * value.new_tensor([w, h]) - 0.5
        for row, column in itertools.product(*([math.floor(p), math.floor(p) + 1] for p in (y.item(), x.item()))):
            if 0 <= row < h and 0 <= column < w:
                share = (1 - (x - column).abs()) * (1 - (y - row).abs())
                cell = value[image, first + row * w + column, head]
                out[image * locations.shape[1] + query][head] += (
                    weights[image, query, head, level, point] * share * cell
                )
    return torch.stack([torch.cat(row) for row in out]).view(b, -1, heads * dim)


def gradients(function, value: Tensor, levels: list, locations: Tensor, weights: Tensor, grad: Tensor) -> tuple:
    """The output, and the gradients of value, locations and weights."""
    inputs = [t.detach().requires_grad_() for t in (value, locations, weights)]
    out = function(inputs[0], levels, *inputs[1:])
    return out.detach(), *torch.autograd.grad(out, inputs, grad)


@pytest.mark.parametrize("name", ["piip", "dino"])
def test_reference_is_the_definition(name: str) -> None:
    inputs = random_inputs(SHAPES[name], torch.float64)
    for actual, expected in zip(
        gradients(deform_attn_reference, *inputs), gradients(plain_loops, *inputs), strict=True
    ):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree_with_the_definition(backend, shape: tuple) -> None:
    for dtype, tolerance in TOLERANCES.items():
        value, levels, locations, weights, grad = random_inputs(shape, dtype)
        sizes = [side for level in levels for side in level]
        if backend.obstacle(value, locations, weights, sizes):
            continue
        # What was rounded to half precision is the truth from which the results may differ.
        exact = value.double(), levels, locations.double(), weights.double(), grad.double()
        actual = (
            backend.forward(value, locations, weights, sizes),
            *backend.backward(grad, value, locations, weights, sizes),
        )
        inputs = value, value, locations, weights
        for result, truth, given in zip(actual, gradients(deform_attn_reference, *exact), inputs, strict=True):
            assert (result.dtype, result.shape) == (given.dtype, truth.shape)
            error = (result.double() - truth).norm() / truth.norm()
            assert error <= tolerance, f"{dtype}: relative error {error}"


@pytest.mark.parametrize("shape", [(2, 2, 6, 0, 4, (3, 3)), (0, 2, 6, 3, 4, (3, 3))], ids=["no_query", "no_image"])
def test_nothing_to_do(shape: tuple) -> None:
    inputs = random_inputs(shape)
    results, expected = (gradients(function, *inputs) for function in (deform_attn, deform_attn_reference))
    assert all(map(torch.equal, results, expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_takes_tensors_with_gaps(backend) -> None:
    value, levels, locations, weights, grad = random_inputs(SHAPES["dino"])
    sizes = [side for level in levels for side in level]

    def spread(x: Tensor) -> Tensor:
        return torch.stack([x, x], dim=-1)[..., 0]

    expected = (
        backend.forward(value, locations, weights, sizes),
        *backend.backward(grad, value, locations, weights, sizes),
    )
    value, locations, weights, grad = map(spread, (value, locations, weights, grad))
    actual = (
        backend.forward(value, locations, weights, sizes),
        *backend.backward(grad, value, locations, weights, sizes),
    )
    for result, truth in zip(actual, expected, strict=True):
        assert torch.equal(result, truth)


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_and_infinite_places_take_nothing_and_nan_shows(backend) -> None:
    value, _, _, _, grad = random_inputs((1, 1, 8, 1, 3, (4, 4)))
    locations = torch.tensor([[math.inf, 0.5], [0.5, -math.inf], [-1e9, math.inf]]).view(1, 1, 1, 1, 3, 2)
    weights = torch.ones(1, 1, 1, 1, 3)
    assert not backend.forward(value, locations, weights, [4, 4]).any()
    locations.clamp_(-1e30, 1e30)
    gvalue, glocations, _ = backend.backward(grad, value, locations, weights, [4, 4])
    assert not gvalue.any()
    assert not glocations.any()
    locations[..., 0, 0] = math.nan
    assert backend.forward(value, locations, weights, [4, 4]).isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_lies_beside_a_place_does_not_matter(backend) -> None:
    """An infinite cell spoils only the samples that touch it."""
    value = torch.zeros(1, 9, 1, 8)
    value[:, 4] = math.inf
    locations = torch.tensor([[1.1, 0.5], [0.2, 0.1], [0.5, 0.5]]).view(1, 3, 1, 1, 1, 2)
    out = backend.forward(value, locations, torch.ones(1, 3, 1, 1, 1), [3, 3])
    assert out.isfinite().all(-1).tolist() == [[True, True, False]]


@pytest.mark.parametrize("name", ["piip", "dino"])
def test_gradients_by_finite_differences(name: str) -> None:
    value, levels, locations, weights, _ = random_inputs(SHAPES[name], torch.float64)
    inputs = [t[:1, :4] if i else t[:1] for i, t in enumerate((value, locations, weights))]
    inputs = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(lambda v, x, w: deform_attn(v, levels, x, w), inputs, fast_mode=name == "dino")


@pytest.mark.skipif(deform_attn_cpp.missing() is not None, reason="no C++ compiler: install g++ or clang++")
@pytest.mark.parametrize("batch", [1, 3])
def test_results_do_not_depend_on_threads(batch: int) -> None:
    value, levels, locations, weights, grad = random_inputs((batch, 5, 12, 200, 4, (3, 3)))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4, 2):
            torch.set_num_threads(count)
            sizes = [side for level in levels for side in level]
            out = deform_attn_cpp.forward(value, locations, weights, sizes)
            results.append((out, *deform_attn_cpp.backward(grad, value, locations, weights, sizes)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_passes_the_checks_of_custom_operators() -> None:
    value, levels, locations, weights, grad = random_inputs(SHAPES["dino"])
    sizes = [side for level in levels for side in level]
    tensors = [t.requires_grad_() for t in (value, locations, weights)]
    opcheck(torch.ops.piip.deform_attn.default, (*tensors, sizes))
    value, _, locations, weights, grad = random_inputs(SHAPES["piip"], torch.bfloat16)
    opcheck(
        torch.ops.piip.deform_attn_backward.default,
        (grad, value, locations, weights, [5, 7]),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_is_one_operator_of_a_compiled_graph() -> None:
    value, levels, locations, weights, grad = random_inputs(SHAPES["dino"])
    graphs = []

    def compiler(graph, inputs):
        graphs.append(graph)
        return graph

    def function(value: Tensor, levels: list, locations: Tensor, weights: Tensor) -> Tensor:
        return deform_attn(value, levels, locations, weights.softmax(dim=-1)).relu()

    torch.compile(function, fullgraph=True, backend=compiler)(value, levels, locations, weights)
    assert [str(n.target) for n in graphs[0].graph.nodes if "piip" in str(n.target)] == ["piip.deform_attn.default"]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    inputs = value, levels, locations, weights, grad
    for actual, expected in zip(gradients(compiled, *inputs), gradients(function, *inputs), strict=True):
        torch.testing.assert_close(actual, expected)


def test_exports_for_batches_of_any_size_as_common_operators() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = DeformAttn(32, 16, num_heads=4)

        def forward(self, query: Tensor, feat: Tensor) -> Tensor:
            return self.attention(query, feat, (3, 4), (5, 6))

    torch.manual_seed(0)
    model = Model()
    batch = torch.export.Dim("batch", min=1, max=64)
    example = torch.randn(2, 12, 32), torch.randn(2, 30, 16)
    program = torch.export.export(model, example, dynamic_shapes=({0: batch}, {0: batch}))
    assert "grid_sampl" in str(program.graph)
    assert "piip" not in str(program.graph)
    inputs = torch.randn(5, 12, 32), torch.randn(5, 30, 16)
    torch.testing.assert_close(program.module()(*inputs), model(*inputs))


def test_onnx_gets_operators_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    value, levels, locations, weights, _ = random_inputs(SHAPES["dino"])
    graph = make_fx(lambda v, x, w: deform_attn(v, levels, x, w))(value, locations, weights)
    assert not [node for node in graph.graph.nodes if "piip" in str(node.target)]
    expected = torch.ops.piip.deform_attn(value, locations, weights, [6, 5, 3, 2, 1, 1])
    torch.testing.assert_close(graph(value, locations, weights), expected)


def test_autocast_rounds_values_alone() -> None:
    value, levels, locations, weights, grad = random_inputs(SHAPES["piip"])
    expected = gradients(deform_attn, value.bfloat16(), levels, locations, weights, grad.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, *grads = gradients(deform_attn, value, levels, locations, weights, grad.bfloat16())
        exact = deform_attn(value.double(), levels, locations.double(), weights.double())
    assert (out.dtype, exact.dtype) == (torch.bfloat16, torch.float64)
    assert {g.dtype for g in grads} == {torch.float32}
    for actual, truth in zip((out, *grads), expected, strict=True):
        torch.testing.assert_close(actual, truth, check_dtype=False)


def test_keeps_nothing_but_its_inputs_for_the_backward_pass() -> None:
    value, levels, locations, weights, _ = random_inputs(SHAPES["piip"], torch.bfloat16)
    tensors = [t.requires_grad_() for t in (value, locations, weights)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()), lambda _: None):
        deform_attn(value, levels, locations, weights)
    assert sorted(saved) == sorted(t.data_ptr() for t in tensors)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operations_are_counted(device: str) -> None:
    value, levels, locations, weights, _ = random_inputs(SHAPES["dino"])
    value, locations, weights = (t.to(device).requires_grad_() for t in (value, locations, weights))
    with FlopCounterMode(display=False) as counter:
        out = deform_attn(value, levels, locations, weights)
    # Four cells and the weight of every sampled value.
    assert counter.get_total_flops() == 2 * 5 * weights.numel() * value.shape[-1]
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 4 * 5 * weights.numel() * value.shape[-1]


GOOD = {"value": (1, 12, 2, 3), "locations": (1, 5, 2, 1, 4, 2), "weights": (1, 5, 2, 1, 4)}


@pytest.mark.parametrize(
    ("wrong", "levels", "message"),
    [
        ({"value": (12, 2, 3)}, [(3, 4)], r"value must be \(B, N, M, D\).*value \(12, 2, 3\)"),
        ({"locations": (1, 5, 2, 1, 4, 3)}, [(3, 4)], "must agree in batch, queries, heads, levels and points"),
        ({"value": (2, 12, 2, 3)}, [(3, 4)], "must agree"),
        ({"value": (1, 12, 4, 3)}, [(3, 4)], "must agree"),
        ({"value": (1, 12, 2, 0)}, [(3, 4)], "only the first two may be 0"),
        ({}, [(3, 4), (1, 1)], r"spatial_shapes \[\(3, 4\), \(1, 1\)\] must be .* each of the 1 levels"),
        ({}, [(3, 4, 1)], "must be a positive height and width"),
        ({}, [(-3, -4)], "must be a positive height and width"),
        ({}, [(3, 5)], r"levels of \[\(3, 5\)\] have 15 cells, but value has 12"),
        ({"value": torch.int32}, [(3, 4)], "value is torch.int32"),
        ({"locations": torch.bfloat16}, [(3, 4)], "locations are torch.bfloat16.*half precision would miss the cells"),
        ({"value": torch.float64}, [(3, 4)], "value is torch.float64, locations are torch.float32"),
        ({"weights": torch.bfloat16}, [(3, 4)], "weights torch.bfloat16"),
        ({"weights": "meta"}, [(3, 4)], "weights on meta; move them to one device"),
    ],
)
def test_says_what_does_not_fit(wrong: dict, levels: list, message: str) -> None:
    tensors = []
    for name, shape in GOOD.items():
        change = wrong.get(name, shape)
        tensors.append(torch.ones(change) if isinstance(change, tuple) else torch.ones(shape).to(change))
    with pytest.raises(ConfigError, match=message):
        deform_attn(tensors[0], levels, *tensors[1:])


def test_weights_may_have_the_dtype_of_the_values() -> None:
    value, levels, locations, weights, _ = random_inputs(SHAPES["piip"], torch.bfloat16)
    out = deform_attn(value, levels, locations, weights.bfloat16())
    assert torch.equal(out, deform_attn(value, levels, locations, weights.bfloat16().float()))


@pytest.mark.parametrize("setting", ["eager", "cpp"])
def test_kernels_can_be_chosen(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    *inputs, _ = random_inputs(SHAPES["piip"])
    for name, module in choice.backends("deform_attn", "cpu").items():
        if name != setting:
            monkeypatch.setattr(module, "forward", None)
    monkeypatch.setenv("PIIP_KERNELS", setting)
    torch.testing.assert_close(deform_attn(*inputs), deform_attn_reference(*inputs))


def test_triton_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    *inputs, _ = random_inputs(SHAPES["piip"])
    monkeypatch.setenv("PIIP_KERNELS", "triton")
    with pytest.raises(
        ConfigError, match=r"cannot be used for deformable attention: (Triton is not|there is no CUDA|they)"
    ):
        deform_attn(*inputs)


def test_machines_without_compiler_fall_back_and_say_so(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    choice.log_once.cache_clear()
    *inputs, _ = random_inputs(SHAPES["piip"])
    monkeypatch.setattr(deform_attn_cpp, "missing", lambda: "there is no compiler")
    with caplog.at_level("INFO", logger="piip.layers.kernels.choice"):
        for _ in range(2):
            torch.testing.assert_close(deform_attn(*inputs), deform_attn_reference(*inputs))
    assert [r.getMessage() for r in caplog.records] == [
        "deformable attention: slower kernels than cpp are used: there is no compiler."
    ]
    assert choice.in_use("deform_attn", "cpu") == "eager (no cpp: there is no compiler)"
    monkeypatch.setenv("PIIP_KERNELS", "cpp")
    with pytest.raises(ConfigError, match=r"cannot be used for deformable attention: there is no compiler"):
        deform_attn(*inputs)
