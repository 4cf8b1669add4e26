"""SKA on the CPU: against the released kernels' numbers, its own definition, and all backends against each other."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from piip.errors import ConfigError
from piip.layers import normed_ska, ska, ska_reference
from piip.layers.kernels import choice, cpu_library

GOLDENS = Path(__file__).parents[1] / "goldens" / "lsnet" / "ska_small.npz"
CASES = [case["name"] for case in json.loads(GOLDENS.with_suffix(".json").read_text())["cases"]]

# Batch, channels, height, width, weight channels, taps.
SHAPES = {
    "lsnet": (2, 64, 14, 14, 8, 9),
    "wide_vectors": (1, 48, 7, 7, 24, 9),
    "many_rows": (1, 8, 301, 11, 1, 9),
    "rows_of_less_than_a_vector": (1, 2000, 9, 5, 1, 9),
    "own_weights": (1, 5, 4, 3, 5, 9),
    "one_pixel": (3, 16, 1, 1, 2, 9),
    "one_row": (1, 16, 1, 6, 2, 9),
    "one_column": (1, 16, 6, 1, 2, 9),
    "no_image": (0, 16, 4, 4, 2, 9),
    "5x5": (2, 8, 6, 5, 2, 25),
    "5x5_on_two_pixels": (1, 8, 1, 2, 2, 25),
    "uneven": (2, 10, 5, 4, 4, 9),
}
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def random_inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, weights, and the gradient of the output."""
    b, c, height, width, j, taps = shape
    random = torch.Generator().manual_seed(0)
    sizes = (b, c, height, width), (b, j, taps, height, width), (b, c, height, width)
    return tuple(torch.randn(size, generator=random).to(dtype) for size in sizes)


def gradients(function, x: Tensor, w: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    out = function(x, w)
    return out.detach(), *torch.autograd.grad(out, (x, w), grad)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", CASES)
def test_reproduces_the_released_kernels_with_gradients(name: str) -> None:
    with np.load(GOLDENS) as file:
        x, w, grad, *expected = (torch.from_numpy(file[f"{name}/{k}"]) for k in ("x", "w", "go", "out", "gx", "gw"))
    # Also what is rounded to float16 has to agree to the last digit, or nearly.
    for actual, golden in zip(gradients(ska, x, w, grad), expected, strict=True):
        torch.testing.assert_close(actual, golden, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ska_reference(x, w), expected[0], rtol=1e-5, atol=1e-5)


def memory_orders(x: Tensor, w: Tensor, grad: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """The same values as convolutions and views of several kinds lay them out."""
    gaps = [torch.stack([t, t], dim=-1)[..., 0] for t in (x, w, grad)]
    return {
        "contiguous": (x, w, grad),
        "channels last": (channels_last(x), w.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2), grad),
        "taps before channels": (channels_last(x), w.transpose(1, 2).contiguous().transpose(1, 2), channels_last(grad)),
        "channels very last": (channels_last(x), w.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2), grad),
        "with gaps": tuple(gaps),
    }


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", choice.backends("ska", "cpu"))
def test_backends_agree_with_the_definition(name: str, shape: tuple[int, ...]) -> None:
    backend = choice.backends("ska", "cpu")[name]
    exact = gradients(ska_reference, *random_inputs(shape, torch.float64))
    for dtype, tolerance in TOLERANCES.items():
        for order, (x, w, grad) in memory_orders(*random_inputs(shape, dtype)).items():
            if backend.missing() or backend.obstacle(x, w):
                continue
            actual = backend.forward(x, w), *backend.backward(grad, x, w)
            for what, result, truth in zip(("out", "gx", "gw"), actual, exact, strict=True):
                assert (result.dtype, result.shape) == (dtype, truth.shape)
                error = (result.double() - truth).norm() / max(truth.norm(), 1e-30)
                assert error <= tolerance, f"{what}, {dtype}, {order}: relative error {error}"


def random_norms(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[nn.GroupNorm, nn.BatchNorm2d]:
    _, c, _, _, j, taps = shape
    norms = nn.GroupNorm(j, j * taps), nn.BatchNorm2d(c).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm in norms:
            for t in norm.state_dict().values():
                if t.is_floating_point():
                    t.copy_(torch.rand(t.shape, generator=random) + 0.5)
    return tuple(norm.to(dtype).requires_grad_(False) for norm in norms)


def separately(x: Tensor, w: Tensor, group_norm: nn.GroupNorm, batch_norm: nn.BatchNorm2d) -> Tensor:
    return x + batch_norm(ska_reference(x, group_norm(w.flatten(1, 2)).view(w.shape)))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("setting", ["eager", "auto"])
def test_norms_can_be_part_of_it(setting: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIIP_KERNELS", setting)
    x, w, grad = random_inputs(shape, torch.float64)
    exact = separately(x, 2 * w + 3, *random_norms(shape, torch.float64))
    for dtype, tolerance in TOLERANCES.items():
        norms = random_norms(shape, dtype)
        for order, (values, weights, _) in memory_orders(x.to(dtype), (2 * w + 3).to(dtype), grad).items():
            result = normed_ska(values, weights, *norms)
            assert (result.dtype, result.shape) == (dtype, x.shape)
            error = (result.double() - exact).norm() / max(exact.norm(), 1e-30)
            assert error <= 2 * tolerance, f"{dtype}, {order}: relative error {error}"


def test_norm_of_weights_with_a_large_mean_loses_no_digits() -> None:
    x, w, _ = random_inputs(SHAPES["lsnet"])
    w = (100 + w).double()
    exact = separately(x.double(), w.float().double(), *random_norms(SHAPES["lsnet"], torch.float64))
    result = normed_ska(x, w.float(), *random_norms(SHAPES["lsnet"]))
    assert (result - exact).norm() / exact.norm() < 1e-5


def test_norms_as_part_of_it_have_gradients_and_checks_of_custom_operators() -> None:
    shape = (1, 8, 3, 4, 2, 9)
    x, w, _ = random_inputs(shape, torch.float64)
    norms = random_norms(shape, torch.float64)
    got = torch.autograd.grad(normed_ska(x.requires_grad_(), w.requires_grad_(), *norms).square().sum(), (x, w))
    want = torch.autograd.grad(separately(x, w, *norms).square().sum(), (x, w))
    for actual, truth in zip(got, want, strict=True):
        torch.testing.assert_close(actual, truth)
    x, w = channels_last(x.detach()), w.detach()
    tensors = [t for norm in norms for t in norm.state_dict().values() if t.is_floating_point()]
    opcheck(torch.ops.piip.normed_ska.default, (x, w, *tensors, 1e-5, 1e-5))
    with FlopCounterMode(display=False) as counter:
        normed_ska(x, w, *norms)
    assert counter.get_total_flops() == 2 * 9 * x.numel()


def test_norms_for_other_widths_are_refused() -> None:
    x, w, _ = random_inputs(SHAPES["lsnet"])
    group_norm, batch_norm = random_norms(SHAPES["lsnet"])
    with pytest.raises(ConfigError, match="8 weight channels of 9 taps; the GroupNorm is for 4 groups in 72 channels"):
        normed_ska(x, w, nn.GroupNorm(4, 72), batch_norm)
    with pytest.raises(ConfigError, match="x has 64 channels; the BatchNorm is for 32"):
        normed_ska(x, w, group_norm, nn.BatchNorm2d(32))
    for lacking in (nn.BatchNorm2d(64, affine=False), nn.BatchNorm2d(64, track_running_stats=False)):
        with pytest.raises(ConfigError, match="affine=True and track_running_stats=True"):
            normed_ska(x, w, group_norm, lacking)


@pytest.mark.parametrize("shape", [(1, 4, 3, 2, 2, 9), (1, 3, 2, 3, 2, 25)], ids=["3x3", "5x5, uneven"])
def test_gradients_by_finite_differences(shape: tuple[int, ...]) -> None:
    x, w, _ = (t.requires_grad_() for t in random_inputs(shape, torch.float64))
    assert torch.autograd.gradcheck(ska, (x, w))


@pytest.mark.parametrize("setting", ["auto", "eager"])
def test_channels_last_stays_so(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIIP_KERNELS", setting)
    x, w, grad = random_inputs(SHAPES["lsnet"])
    for order in (torch.contiguous_format, torch.channels_last):
        out, gx, _ = gradients(ska, x.contiguous(memory_format=order), w, grad)
        assert out.is_contiguous(memory_format=order)
        assert gx.is_contiguous(memory_format=order)


def test_passes_the_checks_of_custom_operators() -> None:
    x, w, _ = random_inputs((1, 16, 3, 4, 2, 9))
    opcheck(torch.ops.piip.ska.default, (channels_last(x).requires_grad_(), w.requires_grad_()))
    x, w, grad = random_inputs((2, 4, 3, 4, 4, 9), torch.bfloat16)
    opcheck(torch.ops.piip.ska_backward.default, (grad, x, w), test_utils=("test_schema", "test_faketensor"))


def test_twice_in_one_compiled_graph() -> None:
    def twice(x: Tensor, w: Tensor) -> Tensor:
        return ska(ska(x, w).relu(), w)

    inputs = random_inputs(SHAPES["lsnet"])
    # Inductor would only add the time of its compiler to what is traced here.
    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(gradients(compiled, *inputs), gradients(twice, *inputs), strict=True):
        torch.testing.assert_close(actual, expected)


def test_exports_for_any_size_as_common_operators() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return ska(x, w)

    x, w, _ = random_inputs((1, 16, 4, 6, 2, 9))
    height, width = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    program = torch.export.export(Model(), (x, w), dynamic_shapes=({2: height, 3: width}, {3: height, 4: width}))
    assert "piip" not in str(program.graph)
    x, w, _ = random_inputs((1, 16, 5, 9, 2, 9))
    torch.testing.assert_close(program.module()(x, w), ska(x, w))


def test_autocast_takes_the_float32_result_of_a_normalisation() -> None:
    x, w, grad = random_inputs(SHAPES["lsnet"])
    x, grad = x.bfloat16(), grad.bfloat16()
    expected = gradients(ska, x, w.bfloat16(), grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, gx, gw = gradients(ska, x, w, grad)
        assert ska(x.double(), w.double()).dtype == torch.float64
    assert (out.dtype, gx.dtype, gw.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    for actual, truth in zip((out, gx, gw), expected, strict=True):
        torch.testing.assert_close(actual, truth, check_dtype=False)


def test_keeps_nothing_but_its_inputs_for_the_backward_pass() -> None:
    x, w, _ = (t.requires_grad_() for t in random_inputs(SHAPES["lsnet"]))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()), lambda _: None):
        ska(x, w)
    assert sorted(saved) == sorted([x.data_ptr(), w.data_ptr()])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operations_are_counted(device: str) -> None:
    x, w, _ = (t.to(device).requires_grad_() for t in random_inputs((2, 16, 5, 6, 2, 9)))
    with FlopCounterMode(display=False) as counter:
        out = ska(x, w)
    assert counter.get_total_flops() == 2 * 9 * x.numel()
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 4 * 9 * x.numel()


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        (torch.ones(4, 3, 3), torch.ones(1, 2, 9, 3, 3), r"x must be \(B, C, H, W\).*x has shape \(4, 3, 3\)"),
        (torch.ones(2, 4, 3, 3), torch.ones(1, 2, 9, 3, 3), "the same batch, height and width"),
        (torch.ones(1, 4, 3, 3), torch.ones(1, 2, 9, 3, 4), "the same batch, height and width"),
        (torch.ones(1, 4, 3, 3), torch.ones(1, 2, 8, 3, 3), "8 taps"),
        (torch.ones(1, 4, 3, 3), torch.ones(1, 2, 4, 3, 3), "4 taps"),
        (torch.ones(1, 4, 3, 3), torch.ones(1, 5, 9, 3, 3), "5 weight channels for 4 channels"),
        (torch.ones(1, 4, 3, 3), torch.ones(1, 0, 9, 3, 3), "0 weight channels"),
        (torch.ones(1, 4, 3, 3), torch.ones(1, 2, 9, 3, 3).half(), "x is torch.float32 and w torch.float16"),
        (torch.ones(1, 4, 3, 3).int(), torch.ones(1, 2, 9, 3, 3).int(), "torch.int32"),
        (torch.ones(1, 4, 3, 3), torch.ones(1, 2, 9, 3, 3, device="meta"), "x is on cpu and w on meta"),
    ],
)
def test_says_what_does_not_fit(x: Tensor, w: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ska(x, w)


@pytest.mark.parametrize("setting", ["eager", "cpp"])
def test_kernels_can_be_chosen(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, _ = random_inputs(SHAPES["lsnet"])
    for name, module in choice.backends("ska", "cpu").items():
        if name != setting:
            monkeypatch.setattr(module, "forward", None)
    monkeypatch.setenv("PIIP_KERNELS", setting)
    torch.testing.assert_close(ska(x, w), ska_reference(x, w))


@pytest.mark.parametrize(
    ("setting", "shape", "message"),
    [
        ("cuda", "lsnet", "PIIP_KERNELS is 'cuda'; set it to 'auto', 'eager', 'cpp' or 'triton'"),
        ("cpp", "5x5", "PIIP_KERNELS is 'cpp', but these kernels cannot be used for SKA: they do not take 25 taps"),
    ],
)
def test_kernels_that_cannot_be_used_are_refused(
    setting: str, shape: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w, _ = random_inputs(SHAPES[shape])
    monkeypatch.setenv("PIIP_KERNELS", setting)
    with pytest.raises(ConfigError, match=message):
        ska(x, w)


def test_log_says_once_what_the_kernels_do_not_take(caplog: pytest.LogCaptureFixture) -> None:
    choice.log_once.cache_clear()
    x, w, _ = random_inputs(SHAPES["5x5"])
    with caplog.at_level(logging.INFO, logger="piip.layers.kernels.choice"):
        for _ in range(2):
            ska(x, w)
    assert [record.getMessage() for record in caplog.records].count(
        "SKA: slower kernels than cpp are used: they do not take 25 taps."
    ) == 1


def test_library_is_built_once_by_many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "answer.cpp"
    source.write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setenv("PIIP_CACHE", str(tmp_path / "cache"))
    library = cpu_library.load_library.__wrapped__  # without the memory of this process
    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(library, [source] * 4))
    assert [lib.answer() for lib in loaded] == [42] * 4
    assert len(list((tmp_path / "cache" / "kernels").iterdir())) == 1


def test_failed_build_is_told_and_not_fatal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PIIP_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "broken.cpp"
    source.write_text("no C++")
    assert cpu_library.load_library(source) is None
    assert cpu_library.library_problem(source).startswith("broken.cpp could not be built or loaded: ")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "other.cpp").write_text("int x;")
    assert cpu_library.load_library(tmp_path / "other.cpp") is None
    assert "broken.cpp could not be built or loaded" in caplog.text
    assert "there is no C++ compiler" in caplog.text
    assert not list((tmp_path / "cache" / "kernels").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="folders have no owners and modes there")
def test_no_library_is_loaded_that_others_could_have_put_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Of a home directory that cannot be written to, iopath falls back to the folder for temporary files.
    monkeypatch.delenv("PIIP_CACHE", raising=False)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "iopath_cache").mkdir()
    (tmp_path / "iopath_cache").chmod(0o777)
    source = tmp_path / "any.cpp"
    source.write_text('extern "C" int answer() { return 42; }')
    load = cpu_library.load_library.__wrapped__
    assert load(source) is None
    assert "others may write to" in caplog.text
    assert "set PIIP_CACHE" in caplog.text
    (tmp_path / "iopath_cache").chmod(0o700)
    assert cpu_library._library_path(source).is_relative_to(tmp_path / "iopath_cache" / "kernels")


def test_onnx_gets_operators_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    x, w, _ = random_inputs(SHAPES["lsnet"])
    graph = make_fx(ska)(x, w)
    assert not [node for node in graph.graph.nodes if "piip" in str(node.target)]
    torch.testing.assert_close(graph(x, w), torch.ops.piip.ska(x, w))
