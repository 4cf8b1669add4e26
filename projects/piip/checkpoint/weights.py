"""The tensors of a checkpoint, from one file or several, left on the disk until they are used."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError
from .files import is_folder, read_checkpoint, tensors_of
from .handlers import INDEX, resolve

__all__ = ["read_weights"]


def read_weights(source: str | os.PathLike) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint of any supported format.

    They are memory-mapped where the format allows it (safetensors, and all that torch writes today), so that a
    checkpoint as large as the memory can be looked at, and copied into a model tensor by tensor. They are for reading.

    Args:
        source: path or address of a file; of an index (``*.index.json``) of the files of one in several parts, or the
            folder with it; or of a checkpoint in parts, which is read into memory.

    Returns:
        the names of the checkpoint, without wrappers, to tensors on the CPU.

    Raises:
        CheckpointError: when something is missing or cannot be read; names every missing part.
        DownloadError: when a file cannot be fetched.
    """
    path = resolve(source)
    if is_folder(path):
        from .sharded import read_sharded  # torch.distributed.checkpoint takes a while to import

        return tensors_of(read_sharded(path, only="model"))
    if not path.endswith(INDEX):
        return tensors_of(read_checkpoint(path, mmap=True))
    weight_map = _weight_map(path)
    parts = sorted(set(weight_map.values()))
    if "://" in os.fspath(source):
        folder = os.fspath(source).rpartition("/")[0]
        files = [resolve(f"{folder}/{part}") for part in parts]
    else:
        files = [str(Path(path).with_name(part)) for part in parts]
        if missing := [part for part, file in zip(parts, files, strict=True) if not os.path.isfile(file)]:
            raise CheckpointError(
                f"checkpoint {path!r} lists {len(parts)} files, of which {len(missing)} are missing beside it: "
                f"{', '.join(missing)}; fetch them, too."
            )
    tensors: dict[str, Tensor] = {}
    for part, file in zip(parts, files, strict=True):
        inside = tensors_of(read_checkpoint(file, mmap=True))
        listed = [name for name, holder in weight_map.items() if holder == part]
        if absent := [name for name in listed if name not in inside]:
            raise CheckpointError(
                f"checkpoint {path!r}: {part} lacks {len(absent)} of the {len(listed)} tensors that the index lists "
                f"({absent[0]} first); fetch the files again, all of one version."
            )
        tensors.update(inside)
    return tensors


def _weight_map(path: str) -> dict[str, str]:
    """Tensor -> name of the file beside the index that holds it."""
    try:
        weight_map = json.loads(Path(path).read_text("utf-8"))["weight_map"]
        # A name with a folder in it could be any file of the machine.
        valid = weight_map and all(file == Path(file).name for file in weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise CheckpointError(
            f"checkpoint {path!r} is no index of weight files: it must be JSON with a weight_map from tensors to the "
            "names of files beside it."
        )
    return weight_map
