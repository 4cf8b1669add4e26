"""Reading and writing checkpoint files: never code out of a file, never half a file."""

from __future__ import annotations

import collections
import os
import pickle
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

__all__ = ["read_checkpoint", "tensors_of", "write_atomically"]

# What the pickles of Detectron2's model zoo consist of; everything else could run code.
_PICKLE_TYPES = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLE_TYPES:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_checkpoint(path: str | os.PathLike) -> Any:
    """Reads a checkpoint file without executing anything in it.

    ``.safetensors`` through safetensors, ``.pkl`` of Detectron2's model zoo as arrays only, everything else as a
    torch file with ``weights_only=True``.

    Returns:
        what the file holds, on the CPU: a mapping of tensors, or one of the usual containers around it.

    Raises:
        CheckpointError: when the file is missing, truncated, not a checkpoint, or contains code.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise CheckpointError(f"checkpoint {path!r} does not exist; check the path.")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        if path.endswith(".pkl"):
            with open(path, "rb") as f:
                data = _ArrayUnpickler(f, encoding="latin1").load()
            model = data.get("model", data)
            arrays = {k: torch.as_tensor(v) for k, v in model.items() if not k.endswith("_momentum")}
            return {**data, "model": arrays} if "model" in data else arrays
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"checkpoint {path!r} is not a plain weight file and is refused, since loading it could run code "
            f"({reason}); save its tensors alone, e.g. as .safetensors, on a machine where you trust it."
        ) from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"checkpoint {path!r} ({os.path.getsize(path)} bytes) is truncated or not a checkpoint ({reason}); "
            "fetch or write it again."
        ) from error


def tensors_of(checkpoint: Any) -> dict[str, Tensor]:
    """The state dict inside any of the usual containers.

    Looks for ``state_dict``, ``module`` (DeepSpeed) and ``model``, in this order, and drops the ``module.`` prefix
    that data-parallel wrappers leave.

    Raises:
        CheckpointError: when there are no named tensors.
    """
    for key in ("state_dict", "module", "model"):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    tensors = {}
    if isinstance(checkpoint, Mapping):
        tensors = {str(k): v for k, v in checkpoint.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError("the checkpoint holds no named tensors; it must be a state dict or a container of one.")
    if all(k.startswith("module.") for k in tensors):
        tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    return tensors


def write_atomically(path: str | os.PathLike, write: Any) -> None:
    """Writes a file so that it is there whole or not at all.

    Args:
        path: where to; its folder must exist.
        write: called with the open binary file.
    """
    path = os.fspath(path)
    fd, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=f".{os.path.basename(path)}.")
    try:
        with os.fdopen(fd, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
