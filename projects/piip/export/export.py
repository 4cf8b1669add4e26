"""Writing a network into a file and reading it again to see that it computes the same."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.files import disk_is_full
from ..errors import ConfigError, DependencyError, StorageError, UserError
from .compare import compare
from .networks import Network

__all__ = ["SUFFIXES", "export_model"]

logger = logging.getLogger(__name__)

Run = Callable[[Tensor], dict[str, Tensor]]

# Of a program of torch.export and of an ONNX graph.
SUFFIXES = (".pt2", ".onnx")
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# The first opset with what LayerNorm and RoIAlign of half pixels need, and which the exporter writes by itself.
_OPSET = 18
_LARGEST = 2**14  # pixels per side
# Protocol buffers end at 2 GiB: weights beyond go into a second file.
_ONE_FILE = 2**31 - 2**24


def export_model(
    network: Network,
    output: str | os.PathLike,
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
) -> dict[str, Any]:
    """Writes a network into a file, after its answers to other images were compared with the model's.

    Args:
        network: what :func:`~.networks.network_of` gives.
        output: the file, whose folder must exist. Its suffix chooses the format: ``.pt2`` a program of torch.export,
            ``.onnx`` an ONNX graph, which above 2 GB has its weights in a second file beside it, with ``.data`` after
            the name.
        size: height and width of images in pixels; by default those of the network.
        dynamic: whether height and width may be other multiples of the network's stride.

    Returns:
        what was compared: ``outputs`` (shapes by name), ``checked`` (sizes of images), ``error`` (relative to the
        largest value of an output), and ``detections`` (how many were compared) of detectors.

    Raises:
        ConfigError: for arguments that do not fit, a network that cannot be exported so, or a file that computes
            something else, which is removed.
        DependencyError: when packages for ONNX are missing.
        StorageError: when the disk is full.
    """
    size = tuple(size or network.size)
    check_arguments(network, Path(output), size, dynamic)
    example = network.image(size, seed=0)
    with torch.no_grad(), _quiet(), _new_files(Path(output)) as path:
        program = _capture(network, example, dynamic)
        write = {".pt2": _write_torch, ".onnx": _write_onnx}[path.suffix]
        run = write(program, path, json.dumps({**network.info, "size": None if dynamic else size}))
        sizes = [size, (size[1] + network.stride, size[0])]
        return _checked(network, run, sizes[: 1 + dynamic])


def check_arguments(network: Network, output: Path, size: tuple[int, int], dynamic: bool) -> None:
    """Refuses what cannot work, before anything is computed.

    Raises:
        ConfigError, DependencyError: see :func:`export_model`.
    """
    check_output(output)
    network.check_size(size, dynamic)


def check_output(output: Path) -> None:
    """The part of :func:`check_arguments` that needs no model."""
    if output.suffix not in SUFFIXES:
        raise ConfigError(
            f"the suffix {output.suffix!r} of the file {str(output)!r} says no format; "
            f"name the file {' or '.join('*' + suffix for suffix in SUFFIXES)}."
        )
    if output.is_dir() or not output.parent.is_dir():
        what = "is a folder" if output.is_dir() else f"cannot be written: there is no folder {str(output.parent)!r}"
        raise ConfigError(f"the file {str(output)!r} {what}; name a file in a folder that exists.")
    if not hasattr(torch.compiler, "is_exporting"):
        raise DependencyError(f"exporting needs torch 2.7 or newer; this is {torch.__version__}.")
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if output.suffix == ".onnx" and missing:
        raise DependencyError(f'ONNX needs {", ".join(missing)}: run `pip install "piip[export]"`.')


def _capture(network: Network, example: Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    """The network as a graph."""
    shapes = None
    if dynamic:
        first, last = network.smallest_side(True) // network.stride, _LARGEST // network.stride
        sides = [network.stride * torch.export.Dim(name, min=first, max=last) for name in "hw"]
        shapes = ({2: sides[0], 3: sides[1]},)
    try:
        return torch.export.export(network.module, (example,), dynamic_shapes=shapes, strict=False)
    except UserError:
        raise
    except Exception as error:
        if not dynamic:
            raise
        raise _not_dynamic(error) from error


def _not_dynamic(error: Exception) -> ConfigError:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ConfigError(
        "this model cannot be exported with --dynamic, since what it computes depends on height and width in a way "
        f"that torch.export cannot follow ({reason.strip()}); export a file for each size, with --size."
    )


def _write_torch(program: torch.export.ExportedProgram, path: Path, info: str) -> Run:
    torch.export.save(program, path, extra_files={"piip.json": info})
    module = torch.export.load(path).module()
    return lambda image: dict(module(image))


def _write_onnx(program: torch.export.ExportedProgram, path: Path, info: str) -> Run:
    import onnxruntime

    names = list(program.module()(*program.example_inputs[0]))
    converted = torch.onnx.export(
        program, dynamo=True, input_names=["image"], output_names=names, opset_version=_OPSET, verbose=False
    )
    converted.model.metadata_props["piip"] = info
    weights = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    converted.save(path, external_data=weights > _ONE_FILE)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: {
        name: torch.from_numpy(x) for name, x in zip(names, session.run(None, {"image": image.numpy()}), strict=True)
    }


def _checked(network: Network, run: Run, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    """Compares the file with the model, on other images than the one it was made with."""
    report: dict[str, Any] = {"checked": sizes, "error": 0.0}
    for seed, size in enumerate(sizes, 1):
        image = network.image(size, seed)
        wanted = network.reference(image)
        try:
            given = run(image)
        except Exception as error:
            if seed == 1:
                raise
            raise _not_dynamic(error) from error  # a size was taken for given
        report["error"] = max(report["error"], compare(wanted, given, size))
        report.setdefault("outputs", {name: tuple(x.shape) for name, x in wanted.items()})
        if "boxes" in wanted:
            report["detections"] = report.get("detections", 0) + len(wanted["boxes"])
    return report


@contextmanager
def _new_files(output: Path) -> Iterator[Path]:
    """A path beside ``output``, in a folder of its own, whose files take their place at the end or vanish."""
    folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        yield folder / output.name
        # What a graph refers to comes before it.
        for file in sorted(folder.iterdir(), reverse=True):
            os.replace(file, output.with_name(file.name))
    except OSError as error:
        if disk_is_full(error):
            raise StorageError(
                f"no space left for {str(output)!r}: make room there, or choose another folder."
            ) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters tell their own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for log in loggers:
            log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)
