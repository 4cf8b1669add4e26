"""What README says is there, is there: commands, configs, overrides, folders, Python examples."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from piip import model_zoo
from piip.data.datasets.digits_scenes import FOLDER
from piip.engine.config import load_config

README = (Path(__file__).parents[1] / "README.md").read_text()


def commands() -> list[list[str]]:
    """The lines of indented blocks, continued ones joined, that call Python."""
    text = README.replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return [shlex.split(line) for line in lines if line.startswith("python ")]


@pytest.mark.parametrize("command", commands(), ids=lambda c: " ".join(c[1:4]))
def test_commands_name_tools_configs_and_keys_that_exist(project: Path, command: list[str]) -> None:
    assert (project / command[1]).is_file()
    if "--config-file" in command:
        name = command[command.index("--config-file") + 1]
        overrides = [word for word in command if re.match(r"[a-z_.]+=", word)]
        assert "model" in load_config(name, overrides)
        if overrides:  # the training tool takes everything after the first one for an override
            assert not [word for word in command[command.index(overrides[0]) :] if word.startswith("--")]


def test_python_examples_work() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(blocks) == 5
    # The first one needs the trained demo, the last line of the fifth a download.
    compile(blocks[0], "README", "exec")
    for block in blocks[1:4]:
        found: dict[str, Any] = {}
        exec(compile(block, "README", "exec"), found)
        assert list(found["maps"]) == [f"c{level + ('LSNet' in block)}" for level in (2, 3, 4, 5)]
    for name in re.findall(r'"([\w/-]+\.py)"', "".join(blocks)):
        assert name in model_zoo.list_configs()


def test_files_and_folders_that_are_named_exist(project: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"^\| `([\w/]+/)`", README, flags=re.M)
    for link in links:
        assert link.startswith("http") or (project / link).exists(), link
    assert f"datasets/{FOLDER}/images/val" in README
