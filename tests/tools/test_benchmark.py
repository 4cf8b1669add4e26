"""tools/benchmark.py on its smallest case; run in this process, since most of its time would be imports."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from piip.benchmark import Row, append, read
from piip.errors import ConfigError, DataError
from piip.layers.kernels import ska_eager

SMALLEST = ["ops", "--only", "7x7 C256", "--only", "B1 forward", "--rounds", "3", "--seconds", "0.005"]


@pytest.fixture
def tool(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Runs the tool with arguments and returns its exit status."""
    spec = importlib.util.spec_from_file_location("benchmark_tool", project / "tools" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
        monkeypatch.setattr(backend, "allow_tf32", True)

    def run(*args: object) -> int:
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, args)])
        return module.main()

    yield run
    torch.set_num_threads(threads)


def test_measures_records_and_finds_what_became_slower(
    tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "rows.jsonl"
    assert tool(*SMALLEST, "--output", output) == 0
    assert "SKA 7x7 C256 B1 forward + backward" in capsys.readouterr().out
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    forward = [row for row in rows if row["case"] == "SKA 7x7 C256 B1 forward"]
    assert {"unfold", "eager", "eager, channels last", "copy of x"} <= {row["name"] for row in forward}
    assert forward[0]["ratio"] == 1
    assert all(row["ms"] >= row["min_ms"] > 0 for row in rows)
    assert all(row["numbers"]["error"] < 1e-5 for row in forward if row["name"] != "copy of x")
    assert {row["environment"]["clock"] for row in rows} == {"process time"}
    # float32 is measured as such, also on a GPU.
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32

    # An earlier measurement in which plain PyTorch was a thousand times as fast.
    old = tmp_path / "old.jsonl"
    faster = [{**row, "ratio": 1000 * row["ratio"]} for row in rows if row["name"] == "eager"]
    old.write_text("".join(json.dumps(row) + "\n" for row in faster))
    assert tool(*SMALLEST, "--compare", old) == 1
    assert "SKA 7x7 C256 B1 forward, eager:" in capsys.readouterr().err

    # One at whose rows nothing can be compared.
    old.write_text(json.dumps({**rows[0], "environment": {"dtype": "bfloat16"}}) + "\n")
    with pytest.raises(DataError, match=r"old\.jsonl cannot be compared with: the two have none of"):
        tool(*SMALLEST, "--compare", old)


def test_two_files_are_compared_and_reported(
    tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    files = [tmp_path / "old.jsonl", tmp_path / "new.jsonl"]
    for path, ratio in zip(files, (2.0, 3.0), strict=True):
        append(path, [Row("ops", "a case", "a way", ms=1, min_ms=1, spread=0, ratio=ratio)])
    assert tool("compare", *files) == 0
    assert "a case, a way: 2.00x -> 3.00x" in capsys.readouterr().out
    assert tool("compare", *reversed(files)) == 1
    assert "slower than in" in capsys.readouterr().err
    assert tool("report", *files, "--page", tmp_path / "speed.md") == 0
    assert "| a way | 3.00 " in (tmp_path / "speed.md").read_text()


def test_a_case_that_fails_is_told_and_the_others_are_measured(
    tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = ska_eager.forward

    def too_large(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if x.shape[1] == 256:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return forward(x, w)

    monkeypatch.setattr(ska_eager, "forward", too_large)
    output = tmp_path / "rows.jsonl"
    assert tool("ops", "--only", "7x7", "--only", "B1 forward", "--seconds", "0.001", "--output", output) == 1
    err = capsys.readouterr().err
    assert "SKA 7x7 C256 B1 forward failed: OutOfMemoryError: CUDA out of memory." in err
    cases = {row.case for row in read(output)}
    assert {"SKA 7x7 C320 B1 forward", "SKA 7x7 C384 B1 forward"} <= cases
    assert "SKA 7x7 C256 B1 forward" not in cases
    # Where nothing was measured, nothing is compared.
    assert tool("ops", "--only", "7x7 C256 B1 forward", "--compare", output) == 1


def test_bad_numbers_are_refused(tool: Callable[..., int]) -> None:
    with pytest.raises(ConfigError, match="--rounds 0: give at least 1"):
        tool("ops", "--rounds", "0")
    for seconds in ("-1", "nan"):
        with pytest.raises(ConfigError, match=f"--seconds {seconds}.*: give more than 0"):
            tool("ops", "--seconds", seconds)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU; CUDA_VISIBLE_DEVICES= runs it")
def test_a_missing_gpu_is_told(tool: Callable[..., int]) -> None:
    with pytest.raises(ConfigError, match="--device cuda: torch sees no CUDA device here"):
        tool("ops", "--device", "cuda")


def test_unknown_case_is_told(tool: Callable[..., int]) -> None:
    with pytest.raises(ConfigError, match="no case has '9x9' in its name; there are SKA 28x28 C128 B1 forward,"):
        tool("ops", "--only", "9x9")
