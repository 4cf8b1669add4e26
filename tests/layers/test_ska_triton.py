"""SKA's Triton kernels: on the CPU by Triton's interpreter, through the compiler for a GPU that need not be there, and
on a real one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from piip.layers import ska, ska_reference
from piip.layers.kernels import ska_eager

triton = pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The interpreter takes a fifth of a second per program, whatever its size: one or two programs each.
SHAPES = {"square": (1, 16, 5, 6, 2, 9), "uneven": (2, 5, 3, 3, 2, 9), "5x5": (1, 4, 2, 3, 1, 25)}


# The interpreter cuts bfloat16 off where a GPU rounds.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def inputs(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format) -> tuple[Tensor, ...]:
    b, c, height, width, j, taps = shape
    random = torch.Generator().manual_seed(0)
    sizes = (b, c, height, width), (b, c, height, width), (b, j, taps, height, width)
    grad, x, w = (torch.randn(size, generator=random).to(dtype) for size in sizes)
    return grad.contiguous(memory_format=memory_format), x.contiguous(memory_format=memory_format), w


def assert_agree(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    tolerance = TOLERANCES[dtype]
    for result, truth in zip(actual, expected, strict=True):
        assert (result.dtype, result.stride()) == (truth.dtype, truth.stride())
        torch.testing.assert_close(result, truth, rtol=tolerance, atol=tolerance)


def test_in_the_interpreter() -> None:
    # Triton has to know before it is imported.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "interpreted"]
    ran = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_in_the_interpreter")
@pytest.mark.parametrize(
    ("shape", "dtype", "memory_format"),
    [
        ("square", torch.float32, torch.contiguous_format),
        ("square", torch.bfloat16, torch.channels_last),
        ("uneven", torch.float16, torch.channels_last),
        ("5x5", torch.float32, torch.contiguous_format),
    ],
)
def test_interpreted(shape: str, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    from piip.layers.kernels import ska_triton

    grad, x, w = inputs(SHAPES[shape], dtype, memory_format)
    actual = ska_triton.forward(x, w), *ska_triton.backward(grad, x, w)
    assert_agree(actual, (ska_eager.forward(x, w), *ska_eager.backward(grad, x, w)), dtype)


def norms(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Gain and bias of weights; weight, bias, mean and variance of sums."""
    _, c, _, _, j, taps = shape
    random = torch.Generator().manual_seed(1)
    return [(torch.rand(n, generator=random) + 0.5).to(dtype) for n in (j * taps, j * taps, c, c, c, c)]


@pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_in_the_interpreter")
@pytest.mark.parametrize(
    ("shape", "dtype", "taps_first"),
    [
        ("square", torch.float32, False),
        ("square", torch.bfloat16, True),
        ("uneven", torch.float16, True),
        ("5x5", torch.float32, False),
        ((1, 4, 23, 24, 1, 9), torch.float32, False),  # moments of three parts of the map
        ((2, 6, 5, 4, 6, 9), torch.float32, False),  # of several weight channels at once
    ],
)
def test_interpreted_with_norms(shape: str | tuple[int, ...], dtype: torch.dtype, taps_first: bool) -> None:
    from piip.layers.kernels import ska_triton

    shape = SHAPES.get(shape, shape)
    _, x, w = inputs(shape, dtype, torch.channels_last if taps_first else torch.contiguous_format)
    w = 2 * w + 3
    if taps_first:
        w = w.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)
    actual = ska_triton.forward_normed(x, w, norms(shape, dtype), (1e-5, 1e-4))
    expected = ska_eager.forward_normed(x.double(), w.double(), norms(shape, torch.float64), (1e-5, 1e-4))
    assert (actual.dtype, actual.stride()) == (dtype, x.stride())
    assert (actual.double() - expected).norm() / expected.norm() < TOLERANCES[dtype]


@pytest.mark.skipif(INTERPRETED, reason="compiled in the other process")
@pytest.mark.parametrize(
    ("kernel", "normed"),
    [("_forward_kernel", False), ("_forward_kernel", True), ("_moments_kernel", True), ("_backward_kernel", False)],
)
def test_compiles_for_a_gpu_that_is_not_there(kernel: str, normed: bool, tmp_path: Path) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from piip.layers.kernels import ska_triton

    function = getattr(ska_triton, kernel)
    constants = {"J": 16, "GROUPS": 8, "EVEN": True, "KS": 3, "ROWS": 2, "PIXELS": 16}
    constants |= {"DENSE": True, "TAPS": 9, "STEPS": 8, "CHANNELS": 16, "PARTS": 4, "SUM": triton.language.float32}
    constants |= dict.fromkeys(("x_c", "w_j", "gw_j"), 1) | ({} if normed else {"norms": None})
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    types = dict.fromkeys(("grad", "x", "w", "out", "gx", "gw"), "*bf16") | {"mean": "*fp32", "squares": "*fp32"}
    types["norms"] = ("*fp32", "*fp32", *["*bf16"] * 6, "i32", "i32", "fp32", "fp32")
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in function.arg_names}
    source = ASTSource(function, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]
    # Weights stay in registers; what does not fit there would go to the stack, in memory.
    (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", tmp_path / "kernel.cubin"], check=True, capture_output=True, text=True)
    assert re.search(r"REG:\d+ STACK:0 .*LOCAL:0", usage.stdout), usage.stdout


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 128, 28, 28, 16, 9), (2, 384, 7, 5, 48, 9), (1, 32, 100, 168, 4, 9)])
def test_on_a_gpu_with_norms(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    from piip.layers.kernels import ska_triton

    _, x, w = inputs(shape, dtype, memory_format)
    w = w.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2) if x.stride(1) == 1 else w
    actual = ska_triton.forward_normed(x.cuda(), w.cuda(), [t.cuda() for t in norms(shape, dtype)], (1e-5, 1e-5))
    exact = ska_eager.forward_normed(x.double(), w.double(), [t.double() for t in norms(shape, dtype)], (1e-5, 1e-5))
    assert actual.dtype == dtype
    assert actual.is_contiguous(memory_format=memory_format)
    tolerance = TOLERANCES[dtype]
    assert (actual.cpu().double() - exact).norm() / exact.norm() < tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 128, 28, 28, 16, 9), (2, 384, 7, 5, 48, 9), (2, 10, 5, 7, 4, 25)])
def test_on_a_gpu(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    tensors = inputs(shape, dtype, memory_format)
    grad, x, w = (t.cuda().requires_grad_() for t in tensors)
    out = ska(x, w)
    actual = out, *torch.autograd.grad(out, (x, w), grad)
    _, x, w = (t.double().requires_grad_() for t in tensors)
    out = ska_reference(x, w)
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 1e-2}[dtype]
    for result, truth in zip(actual, (out, *torch.autograd.grad(out, (x, w), tensors[0].double())), strict=True):
        assert result.dtype == dtype
        assert (result.cpu().double() - truth).norm() / truth.norm() < tolerance
    assert actual[0].is_contiguous(memory_format=memory_format)


@pytest.mark.skipif(INTERPRETED, reason="asked in the other process")
def test_weights_spread_over_more_memory_than_offsets_reach_are_refused() -> None:
    from piip.layers.kernels import ska_triton

    with FakeTensorMode():  # whose GPU need not be there
        x = torch.empty(256, 456, 100, 168, device="cuda")
        w = torch.empty(57, 9, 100, 168, 256, device="cuda").permute(4, 0, 1, 2, 3)
        assert ska_triton.obstacle(x, w) == "they do not take images of 2**31 elements"
        assert ska_triton.obstacle(x, w.contiguous()) is None
