"""tools/benchmark.py on its smallest case; run in this process, since most of its time would be imports."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from piip.errors import ConfigError, DataError

SMALLEST = ["ops", "--only", "7x7 C256", "--only", "B1 forward", "--rounds", "3", "--seconds", "0.005"]


@pytest.fixture
def tool(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Runs the tool with arguments and returns its exit status."""
    spec = importlib.util.spec_from_file_location("benchmark_tool", project / "tools" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()

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

    # An earlier measurement in which plain PyTorch was a thousand times as fast.
    old = tmp_path / "old.jsonl"
    faster = [{**row, "ratio": 1000 * row["ratio"]} for row in rows if row["name"] == "eager"]
    old.write_text("".join(json.dumps(row) + "\n" for row in faster))
    assert tool(*SMALLEST, "--compare", old) == 1
    assert "SKA 7x7 C256 B1 forward, eager:" in capsys.readouterr().err

    # One at whose rows nothing can be compared.
    old.write_text(json.dumps({**rows[0], "environment": {"dtype": "bfloat16"}}) + "\n")
    with pytest.raises(DataError, match="has none of these rows at this device, dtype and number of threads"):
        tool(*SMALLEST, "--compare", old)


def test_unknown_case_is_told(tool: Callable[..., int]) -> None:
    with pytest.raises(ConfigError, match="no case has '9x9' in its name; there are SKA 28x28 C128 B1 forward,"):
        tool("ops", "--only", "9x9")
