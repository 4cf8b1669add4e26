"""piip.env: what it prints and finds, in this environment and in broken ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from piip import env
from piip.errors import DependencyError


def run(*args: str, python: str | Path = sys.executable, path: tuple[Path, ...] = ()) -> subprocess.CompletedProcess:
    """Runs Python with the folders of ``path`` and then the project before everything that is installed."""
    folders = [*map(str, path), str(Path(env.__file__).parents[1])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    return subprocess.run([str(python), *args], capture_output=True, text=True, env=environ)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return folder / "bin" / "python"


def test_reports_this_environment():
    ran = run("-m", "piip.env")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    shown = dict(line.split(None, 1) for line in ran.stdout.splitlines())
    assert {"python", "system", "piip", "torch", "torchvision", "device", *env.REQUIRED} <= shown.keys()
    assert re.match(r"0\.6 \((release|main branch); (pure Python|compiled)", shown["detectron2"])
    assert "PROBLEM" not in ran.stdout


def test_collect_and_problems_agree_with_the_installed_packages():
    import torch

    facts = env.collect()
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["devices"][0].startswith("CPU")
    assert set(facts["backends"]) == set(env.OPTIONAL)
    assert re.match(r"SKA: (cpp|eager).*; deformable attention: (cpp|eager)", facts["kernels"]["cpu"])
    assert not [problem for problem in env.problems() if problem.fatal]
    assert env.require_detectron2() is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("eager", "SKA: eager (PIIP_KERNELS); deformable attention: eager (PIIP_KERNELS)"),
        ("triton", "SKA: none, PIIP_KERNELS is 'triton', but"),
        ("fast", "SKA: none, PIIP_KERNELS is 'fast'; set it to"),
    ],
)
def test_says_what_operators_run_on(setting: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIIP_KERNELS", setting)
    assert env.collect()["kernels"]["cpu"].startswith(message)


def test_a_bare_python_gets_every_remedy_and_status_1(bare_python):
    ran = run("-m", "piip.env", python=bare_python)
    assert ran.returncode == 1
    assert ran.stderr == ""
    assert "PROBLEM: torch is not installed: install torch and torchvision" in ran.stdout
    assert '"omegaconf<2.4"' in ran.stdout
    assert "PROBLEM: Detectron2 is not installed: run `python tools/install_detectron2.py`" in ran.stdout


def test_require_detectron2_names_the_first_thing_to_install(bare_python):
    ran = run("-c", "from piip.env import require_detectron2; require_detectron2()", python=bare_python)
    assert ran.stderr.splitlines()[-1].startswith("piip.errors.DependencyError: torch is not installed: install torch")


@pytest.mark.parametrize("tool", ["lazyconfig_train_net", "demo", "analyze_model", "make_model_zoo"])
def test_tools_say_in_one_line_what_is_missing(bare_python, tool):
    ran = run(str(Path(__file__).parents[1] / "tools" / f"{tool}.py"), "--help", python=bare_python)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: torch is not installed: install torch")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["PIIP", "LazyPredictor", "model_zoo", "load_official"])
def test_the_package_says_so_where_it_is_first_needed(bare_python, name):
    ran = run("-c", f"import piip; print(piip.__version__); piip.{name}", python=bare_python)
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", ran.stdout)
    assert ran.stderr.splitlines()[-1].startswith("piip.errors.DependencyError: torch is not installed")


def test_missing_detectron2(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)  # Python's own way to make an import fail
    remedy = r"^Detectron2 is not installed: run `python tools/install_detectron2\.py`\.$"
    with pytest.raises(DependencyError, match=remedy):
        env.require_detectron2()


def test_a_folder_named_detectron2_is_not_taken_for_it(bare_python, tmp_path):
    (tmp_path / "detectron2").mkdir()
    script = (
        "import sys; from piip import env; env._torch_problem = lambda: None;"  # torch is not the point here
        "print(env._detectron2_problem())"
    )
    ran = run("-c", script, python=bare_python, path=(tmp_path,))
    assert f"the Detectron2 at {tmp_path / 'detectron2'} cannot be imported" in ran.stdout, ran.stderr


def _metadata(folder: Path, name: str, version: str, *lines: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    text = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines])
    (info / "METADATA").write_text(text + "\n")


def test_a_torchvision_that_cannot_be_imported_with_this_torch(tmp_path):
    """What torchvision does at import, without the operator that its compiled library brings."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import torch\ntorch.library.register_fake('torchvision::nms')(lambda *a: a)\n"
    )
    _metadata(tmp_path, "torchvision", "0.15.0", "Requires-Dist: torch (==2.0.0)")
    ran = run("-c", "from piip.env import require_detectron2; require_detectron2()", path=(tmp_path,))
    message = ran.stderr.splitlines()[-1]
    assert "torchvision 0.15.0 was built for torch 2.0.0, but torch" in message
    assert "operator torchvision::nms does not exist" in message
    assert "install torchvision 0." in message


def test_a_pair_that_differs_but_imports_is_a_warning(tmp_path, monkeypatch, capsys):
    _metadata(tmp_path, "torchvision", "0.15.0", "Requires-Dist: torch (==2.0.0)")
    monkeypatch.syspath_prepend(tmp_path)
    assert env.main() == 0
    assert "warning: torchvision 0.15.0 was built for torch 2.0.0" in capsys.readouterr().out


def test_a_too_new_omegaconf_is_told(tmp_path, monkeypatch, capsys):
    _metadata(tmp_path, "omegaconf", "2.4.0")
    monkeypatch.syspath_prepend(tmp_path)
    assert env.main() == 1
    assert 'PROBLEM: omegaconf 2.4.0 is too new: run `pip install "omegaconf<2.4"`' in capsys.readouterr().out


@pytest.mark.parametrize(("torch", "torchvision"), [("2.4.1", "0.19"), ("2.11.0+cpu", "0.26"), ("2.12.1", "0.27")])
def test_which_torchvision_belongs_to_a_torch(torch, torchvision):
    assert env._torchvision_for(torch) == torchvision
