"""Set-up files: requirements that agree with each other, the wheel and its contents, the Makefile's refusals."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from piip import env


def _requirements(text: str) -> dict[str, Requirement]:
    lines = [line.strip() for line in text.splitlines()]
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): r for r in parsed if r.marker is None or r.marker.evaluate()}


@pytest.fixture(scope="module")
def declared(project) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(project / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def required(declared) -> dict[str, Requirement]:
    return _requirements(declared["options"]["install_requires"])


def test_every_requirement_has_a_tested_version_in_range(project, declared, required):
    tested = _requirements((project / "constraints.txt").read_text("utf-8"))
    extras = [_requirements(text) for text in declared["options.extras_require"].values()]
    for name, requirement in {k: v for d in (required, *extras) for k, v in d.items()}.items():
        (pin,) = tested[name].specifier
        assert pin.operator == "==", name
        assert requirement.specifier.contains(pin.version), f"{requirement} does not allow {pin}"


def test_the_environment_check_knows_the_requirements(required):
    assert {*env.REQUIRED, "torch", "torchvision"} == set(required)
    ceilings = {name: [s.version for s in r.specifier if s.operator == "<"] for name, r in required.items()}
    assert {name: versions[0] for name, versions in ceilings.items() if versions} == env.CEILINGS


def test_whatever_piip_imports_is_declared(project, declared, required):
    extras = (_requirements(text) for name, text in declared["options.extras_require"].items() if name != "dev")
    # torch's builds for GPUs bring triton, and nothing needs it without a GPU.
    known = {*required, "detectron2", "piip", "triton", *(name for extra in extras for name in extra)}
    distributions = importlib.metadata.packages_distributions()
    for path in (project / "projects" / "piip").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for module in {name.split(".")[0] for name in names} - sys.stdlib_module_names:
                provided_by = {canonicalize_name(d) for d in distributions.get(module, [module])}
                assert provided_by & known, f"{path} imports {module}, which setup.cfg does not require"


def test_every_ceiling_has_a_reason(project):
    lines = (project / "setup.cfg").read_text("utf-8").partition("install_requires =")[2].partition("[")[0].splitlines()
    explained = False  # by the comment above, which may serve several neighbours
    for line in map(str.strip, lines):
        explained = line.startswith("#") or (explained and "<" in line)
        assert explained or "<" not in line, line


@pytest.fixture(scope="module")
def wheel(project, tmp_path_factory) -> Path:
    """The project's wheel, built from a copy because the build leaves folders in the tree that it builds from."""
    source = tmp_path_factory.mktemp("source") / "project"
    source.mkdir()
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("projects", "configs"):
        shutil.copytree(project / name, source / name, symlinks=True, ignore=unwanted)
    for path in project.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_contents(wheel, project):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith(".dist-info/METADATA"))).decode()
    assert "piip/py.typed" in names
    for path in (project / "configs").rglob("*.py"):
        assert f"piip/configs/{path.relative_to(project / 'configs').as_posix()}" in names
    for path in (project / "projects" / "piip").rglob("*"):
        inside = path.relative_to(project / "projects").as_posix()
        if path.is_file() and path.suffix in {".py", ".json", ".csv", ".tsv"} and "/configs/" not in inside:
            assert inside in names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"piip"}
    assert any(name.endswith("/LICENSE") for name in names)
    assert re.search(r"^Requires-Python: >=3\.10$", metadata, re.MULTILINE)
    assert not re.search(r"^Requires-Dist: detectron2", metadata, re.MULTILINE)


def test_installed_wheel_imports_everywhere(wheel, tmp_path):
    """Every module, from a folder that knows nothing of the checkout."""
    target = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel]
    subprocess.run(command, check=True, capture_output=True)
    script = (
        "import importlib, pkgutil, sys, piip\n"
        "assert piip.__file__.startswith(sys.argv[1]), piip.__file__\n"
        "for module in pkgutil.walk_packages(piip.__path__, 'piip.'):\n"
        "    if not module.name.startswith('piip.configs'):\n"
        "        importlib.import_module(module.name)\n"
        "name = 'COCO-InstanceSegmentation/mask_rcnn_piip_tsb_1120_896_448_1x.py'\n"
        "assert name in piip.model_zoo.list_configs()\n"
        "assert piip.model_zoo.get_config(name).model\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, target],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr


def test_tests_of_a_file_share_a_process(request):
    """What conftest.py marks reaches pytest-xdist, which writes the group behind the name of the test."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("one process anyway; make test runs it")
    assert request.node.nodeid.endswith(f"@{request.path}"), "is it --dist loadgroup, and a pytest of setup.cfg?"


def _make(project: Path, *args: str) -> subprocess.CompletedProcess:
    if shutil.which("make") is None:
        pytest.skip("make is not installed: the system's package make has it")
    environ = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    return subprocess.run(["make", "-C", project, *args], capture_output=True, text=True, env=environ)


def test_make_installs_again_only_when_something_changed(project, tmp_path):
    (tmp_path / ".piip-is-installed").touch()
    assert _make(project, "-q", "env", f"VENV={tmp_path}").returncode == 0
    for changed in ("constraints.txt", "setup.cfg", "tools/install_detectron2.py"):
        assert _make(project, "-q", "-W", changed, "env", f"VENV={tmp_path}").returncode == 1


def test_make_refuses_an_old_or_missing_python(project, tmp_path):
    for python in ("false", "no-such-python"):  # false fails the version check as an old one would
        ran = _make(project, "env", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
        assert ran.returncode != 0
        assert f"error: {python} is missing or older than Python 3.10" in ran.stderr
        assert not (tmp_path / "venv").exists()
