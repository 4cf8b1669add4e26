"""Triton kernels of deformable attention: on the CPU by Triton's interpreter, through the compiler for a GPU that need
not be there, and on a real one.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from piip.layers import deform_attn, deform_attn_reference
from piip.layers.deform_attn import attend_joined
from piip.layers.kernels import deform_attn_eager

triton = pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Batch, heads, channels, queries, points, then height and width of every level; one or two programs each, since the
# interpreter is slow.
SHAPES = {"piip": (1, 4, 6, 9, 2, (5, 7)), "dino": (2, 2, 12, 7, 1, (6, 5), (3, 2))}


def inputs(shape: tuple, dtype: torch.dtype) -> tuple[Tensor, list, Tensor, Tensor, Tensor]:
    """Value, sizes of levels, locations, weights, and the gradient of the output."""
    b, heads, dim, queries, points, *levels = shape
    random = torch.Generator().manual_seed(0)
    value = torch.randn(b, sum(math.prod(s) for s in levels), heads, dim, generator=random)
    locations = torch.rand(b, queries, heads, len(levels), points, 2, generator=random) * 1.4 - 0.2
    weights = torch.randn(b, queries, heads, len(levels), points, generator=random)
    grad = torch.randn(b, queries, heads * dim, generator=random)
    return value.to(dtype), levels, locations, weights, grad.to(dtype)


def test_in_the_interpreter() -> None:
    # Triton has to know before it is imported.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "interpreted"]
    ran = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_in_the_interpreter")
@pytest.mark.parametrize(
    ("shape", "dtype", "exact"),
    [
        ("piip", torch.float32, False),
        ("piip", torch.bfloat16, True),
        ("dino", torch.float16, False),
        ("dino", torch.float32, True),
    ],
)
def test_interpreted(shape: str, dtype: torch.dtype, exact: bool) -> None:
    from piip.layers.kernels import deform_attn_triton

    value, levels, locations, weights, grad = inputs(SHAPES[shape], dtype)
    sizes = [side for level in levels for side in level]
    torch.use_deterministic_algorithms(exact)
    try:
        actual = (
            deform_attn_triton.forward(value, locations, weights, sizes),
            *deform_attn_triton.backward(grad, value, locations, weights, sizes),
        )
    finally:
        torch.use_deterministic_algorithms(False)
    expected = (
        deform_attn_eager.forward(value, locations, weights, sizes),
        *deform_attn_eager.backward(grad, value, locations, weights, sizes),
    )
    # The interpreter cuts bfloat16 off where a GPU rounds.
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for result, truth in zip(actual, expected, strict=True):
        assert result.dtype == truth.dtype
        assert (result - truth).double().norm() < tolerance * truth.double().norm()


def joined_inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, tuple[int, int], tuple[int, int]]:
    """Values, offsets and logits of three points and four heads, the grid of the queries, the other grid."""
    random = torch.Generator().manual_seed(0)
    value = torch.randn(2, 35, 4, 6, generator=random).to(dtype)
    return value, torch.randn(2, 12, 36, generator=random) * 2, (3, 4), (5, 7)


@pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_in_the_interpreter")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_interpreted_with_places_and_weights_made_in_the_kernel(dtype: torch.dtype, tolerance: float) -> None:
    from piip.layers.kernels import deform_attn_triton

    tensors = joined_inputs(dtype)
    truth, actual = attend_joined(*tensors), deform_attn_triton.forward_joined(*tensors)
    assert actual.dtype == dtype
    assert (actual - truth).double().norm() < tolerance * truth.double().norm()


@pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_in_the_interpreter")
def test_interpreted_whole_numbers_show_what_is_not_finite() -> None:
    from piip.layers.kernels import deform_attn_triton

    value, _, locations, weights, grad = inputs((1, 1, 1, 1, 1, (2, 2)), torch.float32)
    assert deform_attn_triton._unit(grad, weights).log2() % 1 == 0
    torch.use_deterministic_algorithms(True)
    try:
        gvalue, *_ = deform_attn_triton.backward(grad * math.inf, value, locations, weights, [2, 2])
    finally:
        torch.use_deterministic_algorithms(False)
    assert gvalue.isnan().all()


@pytest.mark.skipif(INTERPRETED, reason="compiled in the other process")
@pytest.mark.parametrize("kernel", ["_forward_kernel", "_backward_kernel", "_joined_kernel"])
def test_compiles_for_a_gpu_that_is_not_there(kernel: str) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from piip.layers.kernels import deform_attn_triton

    function = getattr(deform_attn_triton, kernel)
    constants = {"HEADS": 16, "DIM": 12, "LEVELS": 1, "POINTS": 4, "ROWS": 64, "CHANNELS": 16, "EXACT": True}
    types = {"unit": "*fp64", "sums": "*i64", "sizes": ("i32",) * (4 if kernel == "_joined_kernel" else 2)}
    types |= dict.fromkeys(("grad", "value", "out"), "*bf16")
    types |= dict.fromkeys(("locations", "weights", "glocations", "gweights", "samples"), "*fp32")
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in function.arg_names}
    compiled = triton.compile(ASTSource(function, signature, constants), target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]


@pytest.mark.gpu
@pytest.mark.parametrize("exact", [False, True], ids=["fast", "deterministic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 16, 24, 200, 4, (20, 31)), (3, 8, 6, 77, 3, (9, 5), (4, 4), (1, 1))])
def test_on_a_gpu(shape: tuple, dtype: torch.dtype, exact: bool) -> None:
    tensors = inputs(shape, dtype)
    results = []
    torch.use_deterministic_algorithms(exact)
    try:
        for _ in range(3):
            value, locations, weights = (tensors[i].cuda().requires_grad_() for i in (0, 2, 3))
            out = deform_attn(value, tensors[1], locations, weights)
            results.append((out, *torch.autograd.grad(out, (value, locations, weights), tensors[4].cuda())))
    finally:
        torch.use_deterministic_algorithms(False)
    if exact:
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    value, locations, weights = (tensors[i].double().requires_grad_() for i in (0, 2, 3))
    out = deform_attn_reference(value, tensors[1], locations, weights)
    truths = out, *torch.autograd.grad(out, (value, locations, weights), tensors[4].double())
    tolerance = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
    for result, truth in zip(results[0], truths, strict=True):
        assert (result.cpu().double() - truth).norm() / truth.norm() < tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_places_and_weights_are_made_in_the_kernel_on_a_gpu(dtype: torch.dtype) -> None:
    value, samples, *grids = joined_inputs(dtype)
    truth = attend_joined(value.double(), samples.double(), *grids)
    result = attend_joined(value.cuda(), samples.cuda(), *grids)
    assert result.dtype == dtype
    assert (result.cpu().double() - truth).norm() < 2e-2 * truth.norm()


@pytest.mark.skipif(INTERPRETED, reason="runs in the other process")
@pytest.mark.parametrize(("version", "reason"), [("3.2.0", "Triton 3.2.0 is older than 3.3"), ("3.10.0", None)])
def test_an_old_triton_is_told(monkeypatch: pytest.MonkeyPatch, version: str, reason: str | None) -> None:
    from piip.layers.kernels import deform_attn_triton

    monkeypatch.setattr(deform_attn_triton.triton, "__version__", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert deform_attn_triton.missing() == reason


@pytest.mark.skipif(INTERPRETED, reason="asked in the other process")
def test_more_images_than_a_grid_has_places_are_refused() -> None:
    from piip.layers.kernels import deform_attn_triton

    with FakeTensorMode():  # whose GPU need not be there
        value, places = (torch.empty(70_000, 4, 1, *rest, device="cuda") for rest in ((8,), (1, 2, 2)))
        reason = deform_attn_triton.obstacle(value, places, places[..., 0], (2, 2))
    assert reason == "they do not take 70000 images"
