"""Reading and writing checkpoint files: never code out of a file, never half a file."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, StorageError

__all__ = [
    "atomic_path",
    "check_intact",
    "disk_is_full",
    "is_folder",
    "read_checkpoint",
    "tensors_of",
    "write_atomically",
]

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

_CONTAINERS = ("state_dict", "module", "model")


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLE_TYPES:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_checkpoint(path: str | os.PathLike, mmap: bool = False) -> Any:
    """Reads a checkpoint file without executing anything in it.

    ``.safetensors`` through safetensors, ``.pkl`` of Detectron2's model zoo as arrays only, everything else as a
    torch file with ``weights_only=True``. Beside tensors a torch file may hold plain Python values and numpy numbers.

    Args:
        path: a local file.
        mmap: leave the tensors of torch files on the disk until they are used, where their format allows it
            (safetensors always are); they are for reading then, and the file must not be changed meanwhile.

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
        with _numpy_numbers():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # torch puts advice before the reason, to load without protection.
        reason = (str(error).rpartition("WeightsUnpickler error:")[2].strip() or str(error)).splitlines()[0]
        if reason.startswith("Unsupported operand"):
            raise CheckpointError(
                f"checkpoint {path!r} ({os.path.getsize(path)} bytes) is not a checkpoint; check the path."
            ) from error
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


def check_intact(path: str | os.PathLike) -> None:
    """Compares what a torch file holds with the checksums in it, which torch writes but does not read.

    Raises:
        CheckpointError: when bytes of it are no longer those that were written.
    """
    path = os.fspath(path)
    if not (os.path.isfile(path) and zipfile.is_zipfile(path)):
        return  # missing, truncated or of another format: that shows when it is read
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        damaged = str(error)
    if damaged:
        raise CheckpointError(
            f"checkpoint {path!r} is damaged: it no longer holds what was written ({damaged}); fetch or write it again."
        )


def is_folder(path: str | os.PathLike) -> bool:
    """Whether a checkpoint is one in parts, see :mod:`piip.checkpoint.sharded`."""
    return os.path.isfile(os.path.join(path, ".metadata"))


def _numpy_numbers() -> contextlib.AbstractContextManager:
    """Lets numpy scalars through ``weights_only``: training logs in checkpoints have them, and they run no code."""
    if torch.torch_version.TorchVersion(torch.__version__) < (2, 6):
        return contextlib.nullcontext()
    scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]
    dtypes = [type(np.dtype(code)) for code in "?bhilqBHILQefd"]
    # Files are written by numpy 1 and 2, which have the function at different places.
    places = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    return torch.serialization.safe_globals([*((scalar, place) for place in places), np.dtype, *dtypes])


def tensors_of(checkpoint: Any) -> dict[str, Tensor]:
    """The state dict inside any of the usual containers.

    Goes into ``state_dict``, ``module`` (DeepSpeed) and ``model``, in this order and as deep as they are nested, and
    drops the ``module.`` prefix that data-parallel wrappers leave. What lies beside it (optimizer, schedule, meta
    data) is not looked at.

    Raises:
        CheckpointError: when there are no named tensors, or only the empty ones of a sharded DeepSpeed training.
    """
    while isinstance(checkpoint, Mapping):
        inside = (checkpoint[key] for key in _CONTAINERS if isinstance(checkpoint.get(key), Mapping))
        if (inner := next(inside, None)) is None:
            break
        checkpoint = inner
    tensors = {}
    if isinstance(checkpoint, Mapping):
        tensors = {str(k): v for k, v in checkpoint.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError("the checkpoint holds no named tensors; it must be a state dict or a container of one.")
    if empty := [name for name, tensor in tensors.items() if not tensor.numel()]:
        raise CheckpointError(
            f"{len(empty)} of {len(tensors)} tensors of the checkpoint are empty ({empty[0]} first), as DeepSpeed's "
            "ZeRO stage 3 leaves them in the file of the model; consolidate its folder with the zero_to_fp32.py there."
        )
    if all(k.startswith("module.") for k in tensors):
        tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    return tensors


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[str]:
    """The name of a temporary file that becomes ``path`` at the end, or vanishes with an exception.

    Args:
        path: where the file shall be; its folder must exist.

    Raises:
        StorageError: when the disk, or the user's share of it, is full.
    """
    path = os.fspath(path)
    fd, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=f".{os.path.basename(path)}.")
    os.close(fd)
    try:
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        written = os.path.getsize(temporary) if os.path.exists(temporary) else 0
        if os.path.exists(temporary):
            os.remove(temporary)
        if disk_is_full(error):
            free = shutil.disk_usage(os.path.dirname(path) or ".").free
            raise StorageError(
                f"no space left for {path!r} ({written / 2**20:.0f} MiB of it were written; {free / 2**20:.0f} MiB are "
                "free now): make room there, or choose another folder."
            ) from error
        raise


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that there is no room left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__context__  # torch.save fails once more when it closes the file
    return False


def write_atomically(path: str | os.PathLike, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file so that it is there whole or not at all.

    Args:
        path: where to; its folder must exist.
        write: called with the open binary file.

    Raises:
        StorageError: when the disk is full.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as f:
        write(f)
