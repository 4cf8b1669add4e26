"""What this Python has, what of it piip can use, and what is wrong with it: ``python -m piip.env``.

Works where torch or Detectron2 are missing or broken, since that is when it is needed: at import it uses the
standard library alone, and everything else is tried, one import at a time.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piip import __version__
from piip.errors import ConfigError, DependencyError

__all__ = ["Problem", "collect", "exit_without_detectron2", "problems", "require_detectron2"]

INSTALL_DETECTRON2 = "python tools/install_detectron2.py"

# What setup.cfg requires: distribution -> module, and the first version that does not work any more (its reason is
# told there). torch, torchvision and Detectron2 are looked at one by one.
REQUIRED = {
    "timm": "timm",
    "pyyaml": "yaml",
    "numpy": "numpy",
    "pillow": "PIL",
    "fvcore": "fvcore",
    "iopath": "iopath",
    "omegaconf": "omegaconf",
    "hydra-core": "hydra",
    "pycocotools": "pycocotools",
    "scipy": "scipy",
    "shapely": "shapely",
    "safetensors": "safetensors",
    "huggingface-hub": "huggingface_hub",
    "tabulate": "tabulate",
    "tqdm": "tqdm",
    "contourpy": "contourpy",
    "matplotlib": "matplotlib",
    "tensorboard": "tensorboard",
    "scikit-learn": "sklearn",
    "torchmetrics": "torchmetrics",
}
CEILINGS = {"fvcore": "0.1.6", "iopath": "0.1.10", "omegaconf": "2.4"}

# What a feature needs beyond that: name shown -> modules.
OPTIONAL = {
    "Triton": ("triton",),
    "faster-coco-eval": ("faster_coco_eval",),
    "OpenCV": ("cv2",),
    "scikit-image": ("skimage",),
    "submitit": ("submitit",),
    "ONNX": ("onnx", "onnxscript"),
    "ONNX Runtime": ("onnxruntime",),
}


@dataclass(frozen=True)
class Problem:
    """Something wrong with this environment, what to do about it, and whether piip cannot be used because of it."""

    what: str
    remedy: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_error(module: str) -> Exception | None:
    """Imports a module and returns what that raised; a broken binary raises other things than ImportError."""
    try:
        importlib.import_module(module)
    except Exception as error:
        return error
    return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _torch_of_torchvision() -> str | None:
    """The torch version that the installed torchvision was built for, as its metadata say."""
    try:
        requirements = importlib.metadata.requires("torchvision") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for requirement in requirements:
        match = re.match(r"torch\s*\(?\s*==\s*([\w.]+)", requirement)
        if match:
            return match.group(1)
    return None


def _torchvision_for(torch_version: str) -> str:
    """The torchvision series made for a torch: 2.10 has 0.25, 2.11 has 0.26, 2.12 has 0.27."""
    major, minor, *_ = _release(torch_version)
    return f"0.{minor + 15}" if major == 2 else "the one of its release"


def _torch_problem() -> Problem | None:
    torch_error = _import_error("torch")
    if torch_error is not None:
        if isinstance(torch_error, ModuleNotFoundError) and torch_error.name == "torch":
            return Problem("torch is not installed", "install torch and torchvision (tested pair: constraints.txt)")
        return Problem(
            f"torch cannot be imported ({torch_error})", "install it again, with the torchvision made for it"
        )
    torch_version = sys.modules["torch"].__version__
    pair = f"install torchvision {_torchvision_for(torch_version)} from the same place as torch"
    built_for = _torch_of_torchvision()
    mismatch = built_for is not None and _release(built_for) != _release(torch_version)
    error = _import_error("torchvision")
    if isinstance(error, ModuleNotFoundError) and error.name == "torchvision":
        return Problem("torchvision is not installed", pair)
    version = _version("torchvision")
    if mismatch:
        what = f"torchvision {version} was built for torch {built_for}, but torch {torch_version} is installed"
        return Problem(f"{what} ({error})" if error else what, pair, fatal=error is not None)
    if error is not None:
        what = f"torchvision {version} cannot be imported with torch {torch_version} ({error})"
        return Problem(what, f"they come from different builds; {pair}")
    return None


def _detectron2_problem() -> Problem | None:
    """What keeps Detectron2 from being used, once torch and torchvision can be."""
    for module in ("detectron2", "detectron2.layers", "detectron2.modeling", "detectron2.evaluation"):
        error = _import_error(module)
        if isinstance(error, ModuleNotFoundError) and error.name == "detectron2":
            return Problem("Detectron2 is not installed", f"run `{INSTALL_DETECTRON2}`")
        if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("detectron2"):
            return Problem(f"Detectron2 needs {error.name}, which is not installed", f"run `pip install {error.name}`")
        if error is not None:
            where = _location("detectron2")
            return Problem(
                f"the Detectron2 at {where} cannot be imported ({error})", f"replace it with `{INSTALL_DETECTRON2}`"
            )
    return None


def _location(module: str) -> str | None:
    """The folder of a package; for a mere folder of that name, which Python takes for one too, that folder."""
    spec = importlib.util.find_spec(module)
    return next(iter(spec.submodule_search_locations or ()), None) if spec else None


def _detectron2() -> str:
    """Which Detectron2 is used: version, branch, compiled or not, and where it lies."""
    import detectron2

    # Both call themselves 0.6; only the main branch has a ViT backbone.
    branch = "main branch" if importlib.util.find_spec("detectron2.modeling.backbone.vit") else "release"
    extension = importlib.util.find_spec("detectron2._C")
    pure = extension is None or str(extension.origin).endswith(".py")
    build = "pure Python, stand-in for the compiled operators" if pure else "compiled operators"
    return f"{detectron2.__version__} ({branch}; {build}) at {_location('detectron2')}"


def _optional(modules: tuple[str, ...]) -> str:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            return f"not installed ({module})"
        error = _import_error(module)
        if error is not None:
            return f"broken ({module}: {error})"
    return "usable"


def require_detectron2() -> None:
    """Returns where Detectron2 can be used.

    Raises:
        DependencyError: torch, torchvision or Detectron2 is missing, broken, or does not fit the others; the message
            says which one and what to do.
    """
    problem = _torch_problem()
    if problem is None or not problem.fatal:
        problem = _detectron2_problem()
    if problem is not None:
        raise DependencyError(f"{problem}.")


def exit_without_detectron2() -> None:
    """For command-line tools, before they import what needs Detectron2: one line and status 2, no traceback."""
    try:
        require_detectron2()
    except DependencyError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def problems() -> list[Problem]:
    """All that is wrong with this environment, what must be put right first at the front."""
    found = []
    if sys.version_info < (3, 10):  # noqa: UP036  run from a checkout, nothing else has checked it
        found.append(Problem(f"Python {platform.python_version()} is too old", "use Python 3.10 or newer"))
    torch = _torch_problem()
    if torch is not None:
        found.append(torch)
    missing = [name for name, module in REQUIRED.items() if importlib.util.find_spec(module) is None]
    if missing:
        found.append(Problem(f"not installed: {', '.join(missing)}", _pip_install(*missing)))
    for distribution, module in REQUIRED.items():
        version = _version(distribution)
        if distribution in missing:
            continue
        if version and distribution in CEILINGS and _release(version) >= _release(CEILINGS[distribution]):
            found.append(Problem(f"{distribution} {version} is too new", _pip_install(distribution)))
        elif torch is None and (error := _import_error(module)) is not None:
            found.append(Problem(f"{distribution} {version} cannot be imported ({error})", "install it again"))
    if torch is None or not torch.fatal:
        detectron2 = _detectron2_problem()
    elif importlib.util.find_spec("detectron2") is None:  # what else may be wrong with it, a broken torch hides
        detectron2 = Problem("Detectron2 is not installed", f"run `{INSTALL_DETECTRON2}` when torch works")
    else:
        detectron2 = None
    return [*found, detectron2] if detectron2 else found


def _pip_install(*distributions: str) -> str:
    wanted = [f'"{name}<{CEILINGS[name]}"' if name in CEILINGS else name for name in distributions]
    return f"run `pip install {' '.join(wanted)}`"


def collect() -> dict[str, Any]:
    """The facts: ``versions`` (name -> text), ``devices`` (list of text), ``backends`` (name -> state), ``kernels``
    (what our operators run on, by kind of device).

    A state is ``usable``, or says why not.
    """
    versions = {
        "python": f"{platform.python_version()} at {sys.executable}",
        "system": platform.platform(),
        "piip": f"{__version__} at {Path(__file__).parent}",
    }
    torch_problem = _torch_problem()
    for distribution in ("torch", "torchvision"):
        module = sys.modules.get(distribution)  # its own text also names the build, as in 2.11.0+cpu
        versions[distribution] = getattr(module, "__version__", None) or _version(distribution) or "not installed"
    if torch_problem is None or not torch_problem.fatal:
        problem = _detectron2_problem()
        versions["detectron2"] = problem.what if problem else _detectron2()
    else:
        versions["detectron2"] = _version("detectron2") or "not installed"
    versions.update({distribution: _version(distribution) or "not installed" for distribution in REQUIRED})

    devices = [f"CPU, {os.cpu_count()} cores"]
    backends = {name: _optional(modules) for name, modules in OPTIONAL.items()}
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda"):
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            devices.append(f"cuda:{index}, {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}")
        if backends["Triton"] == "usable" and not torch.cuda.is_available():
            backends["Triton"] = "installed, but there is no CUDA device"
    usable = torch_problem is None or not torch_problem.fatal
    return {"versions": versions, "devices": devices, "backends": backends, "kernels": _kernels() if usable else {}}


def _kernels() -> dict[str, str]:
    """What each operator runs on, and why not on something faster; builds the C++ kernels if that was not done yet."""
    import torch

    try:
        from piip.layers.kernels.choice import OPERATORS, in_use
    except ImportError as error:  # something that we require is missing, which is told as a problem
        return {"cpu": f"unknown ({error})"}
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return {
        device: "; ".join(_kernel(in_use, op, name, device) for op, name in OPERATORS.items()) for device in devices
    }


def _kernel(in_use: Callable[[str, str], str], operator: str, name: str, device: str) -> str:
    try:
        return f"{name}: {in_use(operator, device)}"
    except ConfigError as error:
        return f"{name}: none, {str(error).rstrip('.')}"


def main() -> int:
    """Prints the facts and the problems; returns 1 where one of these makes piip unusable."""
    facts = collect()
    rows = [*facts["versions"].items(), *(("device", device) for device in facts["devices"])]
    kernels = [(f"kernels on {device}", text) for device, text in facts["kernels"].items()]
    for name, value in [*rows, *facts["backends"].items(), *kernels]:
        print(f"{name:<18}{value}")
    found = problems()
    for problem in found:
        print(f"{'PROBLEM' if problem.fatal else 'warning'}: {problem}")
    if not found:
        print("no problems found")
    return int(any(problem.fatal for problem in found))


if __name__ == "__main__":
    sys.exit(main())
