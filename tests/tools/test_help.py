"""Every tool starts in a new interpreter: other tests run some of them in forks of a process that has imported much."""

import subprocess
import sys
from pathlib import Path

TOOLS = sorted((Path(__file__).parents[2] / "tools").glob("*.py"))
PROGRAM = """
import runpy, sys
for tool in sys.argv[1:]:
    sys.argv = [tool, "--help"]
    try:
        runpy.run_path(tool, run_name="__main__")
    except SystemExit as end:
        assert not end.code, (tool, end.code)
    else:
        raise AssertionError(f"{tool} went on after --help")
    for name in [name for name in sys.modules if name.split(".")[0] in ("piip", "detectron2")]:
        del sys.modules[name]  # the next one has to import what it uses
"""


def test_every_tool_tells_how_it_is_used(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, *map(str, TOOLS)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("usage: ") == len(TOOLS) >= 9
    for tool in TOOLS:
        assert f"usage: {tool.name}" in run.stdout
