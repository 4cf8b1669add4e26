#!/usr/bin/env python3
"""Installs Detectron2 into the Python that runs this file, unless a working one is there already.

Detectron2 has no release under its own name on the package index. What the index has is a source archive of 0.6
whose Python files equal the upstream tag but whose C++ sources are missing. From that archive, pinned by its hash,
this tool builds a pure-Python wheel: it applies the edits below, which today's numpy, Pillow, PyTorch and setuptools
need, and adds a stand-in for the compiled extension. NMS and ROIAlign come from torchvision anyway; rotated boxes and
deformable convolution are not available and say so when called.

    python tools/install_detectron2.py                     keep what works, else build the wheel and install it
    python tools/install_detectron2.py --force             install even where a Detectron2 works already
    python tools/install_detectron2.py --source git        upstream's main branch with compiled operators instead
    python tools/install_detectron2.py --wheel-dir wheels  only build the wheel, to carry to a machine without network

Needs pip, setuptools, torch and torchvision in this Python, and nothing else: standard library only.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

PIN = "pb1-detectron2==0.6"
ARCHIVE = "pb1-detectron2-0.6.tar.gz"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
GIT_URL = "git+https://github.com/facebookresearch/detectron2.git"
# pip 26.3 began to refuse archives whose optional requirements name a URL, as one of the pinned archive's does, even
# where nothing of them is installed; an older pip then does the download, and only that.
DOWNLOADING_PIP = "26.2"
WHEEL = "detectron2-0.6-py3-none-any.whl"
DIST_INFO = "detectron2-0.6.dist-info"

# Folders of the archive that go into the wheel -> their place in it (as upstream's own setup.py maps them).
FOLDERS = {
    "detectron2/": "detectron2/",
    "projects/PointRend/point_rend/": "detectron2/projects/point_rend/",
    "projects/DeepLab/deeplab/": "detectron2/projects/deeplab/",
    "projects/Panoptic-DeepLab/panoptic_deeplab/": "detectron2/projects/panoptic_deeplab/",
}

# Detectron2's own list asks for black==21.4b2 and caffe2's helpers, which nothing we run needs, and for no torch.
REQUIREMENTS = (
    "torch>=1.8",
    "torchvision",
    "numpy",
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "PyYAML",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
)


class InstallError(Exception):
    """The installation cannot go on; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Edit:
    """One substitution in one file of Detectron2; the archive is pinned, so the number of matches is exact."""

    path: str
    pattern: str
    replacement: str
    why: str
    count: int = 1

    def apply(self, text: str) -> str:
        edited, count = re.subn(self.pattern, self.replacement, text)
        if count != self.count:
            raise InstallError(
                f"{self.path}: {self.pattern!r} matches {count} times instead of {self.count}, so this is not the "
                f"source that the edits were written for ({PIN})"
            )
        return edited


def _numpy_alias(path: str, count: int) -> Edit:
    return Edit(path, r"\bnp\.(bool|int|float|str)\b", r"\1", "numpy 1.24 removed the aliases of builtins", count)


EDITS = (
    _numpy_alias("data/build.py", 2),
    _numpy_alias("data/datasets/pascal_voc.py", 1),
    _numpy_alias("evaluation/pascal_voc_evaluation.py", 2),
    _numpy_alias("evaluation/sem_seg_evaluation.py", 7),
    _numpy_alias("structures/masks.py", 3),
    _numpy_alias("utils/video_visualizer.py", 1),
    _numpy_alias("utils/visualizer.py", 3),
    Edit("layers/mask_ops.py", r"np\.array\(mask, copy=False\)", "np.asarray(mask)", "numpy 2 raises if it copies"),
    Edit("data/transforms/transform.py", r"\bImage\.LINEAR\b", "Image.BILINEAR", "Pillow 10 removed the old name"),
    Edit(
        "modeling/anchor_generator.py",
        r"torch\.meshgrid\(shifts_y, shifts_x\)",
        'torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        "PyTorch warns where the order is not given",
    ),
    Edit(
        "projects/panoptic_deeplab/post_processing.py",
        r"( +)(torch\.arange\(width, dtype=offsets\.dtype, device=offsets\.device\),\n)",
        r'\1\2\1indexing="ij",\n',
        "PyTorch warns where the order is not given",
    ),
    Edit(
        "model_zoo/model_zoo.py",
        r"import pkg_resources\n",
        "from importlib.resources import files\n",
        "setuptools 82 removed pkg_resources",
    ),
    Edit(
        "model_zoo/model_zoo.py",
        r'pkg_resources\.resource_filename\(\s*"detectron2\.model_zoo", os\.path\.join\("configs", config_path\)\s*\)',
        'str(files("detectron2.model_zoo") / "configs" / config_path)',
        "setuptools 82 removed pkg_resources",
    ),
    Edit(
        "modeling/meta_arch/retinanet.py",
        r"get_norm\(norm, 1\)",
        "get_norm(norm, 32)",
        "PyTorch refuses a group norm of one channel",
    ),
    Edit(
        "export/__init__.py",
        r"from \.api import \*\n",
        "try:\n    from .api import *  # the caffe2 export\nexcept ImportError:\n    pass\n",
        "PyTorch no longer ships caffe2",
    ),
    Edit(
        "layers/nms.py",
        r"from torchvision\.ops import nms  # BC-compat\n",
        "from torchvision.ops import nms  # BC-compat\n\nfrom detectron2 import _C\n",
        "rotated NMS is compiled",
    ),
    Edit("layers/nms.py", r"torch\.ops\.detectron2\.nms_rotated\(", "_C.nms_rotated(", "rotated NMS is compiled"),
    Edit(
        "evaluation/coco_evaluation.py",
        r"self\._use_fast_impl = use_fast_impl\n",
        "self._use_fast_impl = False  # pycocotools does the work\n",
        "the fast COCO evaluation is compiled",
    ),
)

FAST_EVAL = '''"""The name of Detectron2's compiled COCO evaluation; in this build pycocotools does the work."""

from pycocotools.cocoeval import COCOeval


class COCOeval_opt(COCOeval):
    """pycocotools' evaluation, unchanged."""
'''

STAND_IN = '''"""Stands in for the compiled module in the pure-Python build; its operators only tell what is missing."""

PURE_PYTHON = True


def get_compiler_version():
    return "none (pure-Python build)"


def get_cuda_version():
    return "not available"


def has_cuda():
    return False


def _missing(name, feature):
    def operator(*args, **kwargs):
        raise NotImplementedError(
            f"detectron2._C.{name} is not in this pure-Python build of Detectron2, so {feature} cannot be used: "
            "install a compiled one with `python tools/install_detectron2.py --source git --force`."
        )

    operator.__name__ = name
    return operator


box_iou_rotated = _missing("box_iou_rotated", "the overlap of rotated boxes")
nms_rotated = _missing("nms_rotated", "NMS of rotated boxes")
roi_align_rotated_forward = _missing("roi_align_rotated_forward", "ROIAlign of rotated boxes")
roi_align_rotated_backward = _missing("roi_align_rotated_backward", "ROIAlign of rotated boxes")
deform_conv_forward = _missing("deform_conv_forward", "deformable convolution")
deform_conv_backward_input = _missing("deform_conv_backward_input", "deformable convolution")
deform_conv_backward_filter = _missing("deform_conv_backward_filter", "deformable convolution")
modulated_deform_conv_forward = _missing("modulated_deform_conv_forward", "modulated deformable convolution")
modulated_deform_conv_backward = _missing("modulated_deform_conv_backward", "modulated deformable convolution")
'''

WHOLE_FILES = {"detectron2/_C.py": STAND_IN, "detectron2/evaluation/fast_eval_api.py": FAST_EVAL}

NOTICE = "# Changed for piip by tools/install_detectron2.py: {}.\n"

# Runs in a fresh interpreter: a broken build may crash it, and modules must not be cached across the installation.
PROBE = """
import importlib, importlib.metadata, json, os, sys
sys.path[:] = [p for p in sys.path if p]  # a folder named detectron2 where we stand is not an installation
def error_of(*names):
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
found = {name: error_of(name) for name in ("setuptools", "pip", "torch", "torchvision")}  # setuptools before pip
spec = importlib.util.find_spec("detectron2")
if spec is not None:
    parts = ("", ".layers", ".modeling", ".evaluation", "._C")
    error = error_of(*("detectron2" + part for part in parts))
    found["detectron2"] = dict(error=error, where=(list(spec.submodule_search_locations or []) or [spec.origin])[0])
    owners = importlib.metadata.packages_distributions().get("detectron2", [])
    try:
        owners = [importlib.metadata.distribution("detectron2").metadata["Name"], *owners]
    except importlib.metadata.PackageNotFoundError:
        pass
    found["detectron2"]["owners"] = owners
    if error is None:
        import detectron2, detectron2._C as _C
        pure = os.path.splitext(_C.__file__)[1] == ".py"
        found["detectron2"]["what"] = f"{detectron2.__version__}, " + ("pure Python" if pure else "compiled operators")
print("PROBE" + json.dumps(found))
"""


def say(message: str) -> None:
    print(f"install_detectron2: {message}", file=sys.stderr, flush=True)


def probe() -> dict:
    """What this Python has: the import error (or None) of each base package, and a description of Detectron2."""
    ran = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    for line in ran.stdout.splitlines():
        if line.startswith("PROBE"):
            return json.loads(line[len("PROBE") :])
    raise InstallError(
        f"importing torch, torchvision and detectron2 ended {sys.executable} with status {ran.returncode}; reinstall "
        f"the one that crashes. {_tail(ran.stderr)}"
    )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _tail(text: str, lines: int = 12) -> str:
    kept = [line for line in text.splitlines() if line.strip()][-lines:]
    return "It said:\n  " + "\n  ".join(kept) if kept else "It said nothing."


def pip(*args: str, failed: str, program: tuple[str, ...] = ("-m", "pip")) -> None:
    """Runs pip of this Python with its own settings; raises ``failed`` and pip's last lines where it fails."""
    command = [sys.executable, *program, "--disable-pip-version-check", "--no-input", *args]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ran.returncode:
        raise InstallError(f"{failed} {_tail(ran.stdout)}")


def check_base(found: dict) -> None:
    """Raises where a package that the archive's set-up script or Detectron2 itself imports is missing or broken."""
    for name in ("torch", "torchvision", "setuptools", "pip"):
        error = found[name]
        if error is None:
            continue
        if name == "torchvision" and "operator torchvision::nms does not exist" in error:
            remedy = "torch and torchvision were built for different versions; install a pair that belongs together"
        elif name == "pip":
            remedy = "run `python -m ensurepip` first"
        else:
            remedy = "install it first (tested versions: constraints.txt)"
        raise InstallError(f"{name} cannot be imported by {sys.executable} ({error}): {remedy}.")


def download(folder: Path) -> Path:
    """Fetches the pinned source archive with pip into ``folder`` and returns its path, its hash verified."""
    failed = (
        f"pip could not fetch {PIN}: is the package index reachable? On a machine without network install a wheel that "
        "--wheel-dir built elsewhere."
    )
    program = ("-m", "pip")
    if _release(importlib.metadata.version("pip")) > _release(DOWNLOADING_PIP):
        older = folder / "pip"
        pip("install", "--no-deps", "--target", str(older), f"pip=={DOWNLOADING_PIP}", failed=failed)
        program = (str(older / "pip"),)
    pinned = folder / "pinned.txt"
    pinned.write_text(f"{PIN} --hash=sha256:{SHA256}\n", encoding="utf-8")
    pip(
        *("download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes"),
        *("--dest", str(folder), "--requirement", str(pinned)),
        failed=failed,
        program=program,
    )
    archive = folder / ARCHIVE
    if not archive.is_file():
        raise InstallError(f"pip fetched {PIN} but not as {ARCHIVE}; it left {sorted(os.listdir(folder))}.")
    return archive


def read_archive(archive: Path) -> dict[str, bytes]:
    """The files of the wheel before any edit, by their path in it; raises where the archive is not the pinned one."""
    data = archive.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        raise InstallError(
            f"{archive.name} has the SHA-256 {digest} instead of {SHA256}; delete it and download again."
        )
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            if member.isfile() and name == "LICENSE":
                files[f"{DIST_INFO}/licenses/LICENSE"] = tar.extractfile(member).read()
            for source, target in FOLDERS.items():
                if member.isfile() and name.startswith(source):
                    files[target + name[len(source) :]] = tar.extractfile(member).read()
    return files


def edit(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same files with the edits applied, each edited one marked as such, and checked to be valid Python."""
    files = dict(files)
    for module in sorted({e.path for e in EDITS}):
        path, edits = f"detectron2/{module}", [e for e in EDITS if e.path == module]
        if path not in files:
            raise InstallError(f"{path} is not in {PIN}.")
        text = files[path].decode("utf-8")
        for one in edits:
            text = one.apply(text)
        files[path] = (NOTICE.format("; ".join(dict.fromkeys(e.why for e in edits))) + text).encode("utf-8")
    files.update({path: text.encode("utf-8") for path, text in WHOLE_FILES.items()})
    for path, data in files.items():
        if path.endswith(".py"):
            compile(data, path, "exec", dont_inherit=True)
    return files


def metadata() -> str:
    lines = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        "Version: 0.6",
        "Summary: Detectron2 0.6 as pure Python, with a stand-in for its compiled operators",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License: Apache-2.0",
        "Requires-Python: >=3.10",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS),
        "",
        f"Built by piip's tools/install_detectron2.py from {PIN} (sha256 {SHA256}).",
        "Every changed file says so in its first line.",
    ]
    return "\n".join(lines) + "\n"


def write_wheel(files: dict[str, bytes], folder: Path) -> Path:
    """Packs the files into ``folder``; the same files give the same bytes, whenever and wherever it runs."""
    files = dict(files)
    files[f"{DIST_INFO}/METADATA"] = metadata().encode("utf-8")
    files[f"{DIST_INFO}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: piip-install-detectron2\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{DIST_INFO}/top_level.txt"] = b"detectron2\n"
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for path in sorted(files):
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[path]).digest()).rstrip(b"=").decode()
        rows.writerow([path, f"sha256={digest}", len(files[path])])
    rows.writerow([f"{DIST_INFO}/RECORD", "", ""])
    record_path = f"{DIST_INFO}/RECORD"

    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / WHEEL
    unfinished = folder / f".{WHEEL}.{os.getpid()}"
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for path in [*sorted(files), record_path]:
                info = zipfile.ZipInfo(path, date_time=(1980, 1, 1, 0, 0, 0))
                info.external_attr = 0o100644 << 16
                info.create_system = 3
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, record.getvalue() if path == record_path else files[path])
        os.replace(unfinished, wheel)
    finally:
        unfinished.unlink(missing_ok=True)
    return wheel


def build_wheel(folder: Path) -> Path:
    """Downloads the archive, applies the edits and leaves the pure-Python wheel in ``folder``."""
    with tempfile.TemporaryDirectory(prefix="detectron2-") as scratch:
        say(f"downloading {PIN}")
        files = edit(read_archive(download(Path(scratch))))
    wheel = write_wheel(files, folder)
    say(f"built {WHEEL}: {len(files)} files, {len(EDITS)} edits, {len(WHOLE_FILES)} files of our own")
    return wheel


def build_git_wheel(folder: Path) -> Path:
    """Compiles upstream's main branch with pip and leaves the wheel in ``folder``."""
    if shutil.which("git") is None:
        raise InstallError("git is not installed, and --source git needs it to fetch Detectron2's sources.")
    say(f"building {GIT_URL} (some minutes)")
    with tempfile.TemporaryDirectory(prefix="detectron2-") as scratch:
        pip(
            *("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", scratch, GIT_URL),
            failed=f"Building {GIT_URL} failed: it needs network, a C++ compiler and, for a GPU, the CUDA toolkit that "
            "torch was built with; without --source git the pure-Python Detectron2 needs none of them.",
        )
        (built,) = Path(scratch).glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(built, folder / built.name))


def install(wheel: Path, replaced: dict | None) -> dict:
    """Installs the wheel and what it requires; leaves no Detectron2 behind where the installed one does not work."""
    pip("install", str(wheel), failed=f"pip could not install {wheel.name}.")
    if replaced is not None:  # pip leaves an installed 0.6 alone where it is offered another 0.6
        pip("install", "--no-deps", "--force-reinstall", str(wheel), failed=f"pip could not install {wheel.name}.")
    installed = probe().get("detectron2") or {"error": "it is not found"}
    if installed["error"] is not None:
        pip("uninstall", "--yes", "detectron2", failed="pip could not remove the Detectron2 that does not work.")
        raise InstallError(
            f"Detectron2 was installed but cannot be imported ({installed['error']}), so it was removed."
        )
    return installed


def check_replaceable(present: dict) -> None:
    """Raises where pip would write over a Detectron2 that it cannot remove."""
    others = [owner for owner in present["owners"] if owner != "detectron2"]
    if "detectron2" in present["owners"] and not others:
        return
    remedy = f"run `pip uninstall {others[0]}`" if others else "remove it or take it off the path"
    raise InstallError(
        f"The Detectron2 at {present['where']} was not installed under that name by pip: {remedy} first."
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--source", choices=["pinned", "git"], default="pinned", help="0.6 as pure Python, or upstream's main branch"
    )
    parser.add_argument("--wheel-dir", type=Path, metavar="DIR", help="only build the wheel, there; print its path")
    parser.add_argument("--force", action="store_true", help="install even where a Detectron2 works already")
    args = parser.parse_args(argv)
    build = build_git_wheel if args.source == "git" else build_wheel

    found = probe()
    present = found.get("detectron2")
    if args.wheel_dir is None and present is not None:
        if present["error"] is None and not args.force:
            say(f"kept Detectron2 {present['what']}, at {present['where']} (--force replaces it)")
            return 0
        if present["error"] is not None:
            check_base(found)  # a broken torch breaks Detectron2 too, and is the thing to tell
            say(f"the Detectron2 at {present['where']} does not work ({present['error']})")
        check_replaceable(present)
    check_base(found)
    if args.wheel_dir is not None:
        print(build(args.wheel_dir))
        return 0
    with tempfile.TemporaryDirectory(prefix="detectron2-") as scratch:
        installed = install(build(Path(scratch)), replaced=present)
    say(f"installed Detectron2 {installed['what']}, at {installed['where']}")
    return 0


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036  older ones read this line too
        sys.exit("error: install_detectron2 needs Python 3.10 or newer, this is " + sys.version.split()[0])
    try:
        sys.exit(main())
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
