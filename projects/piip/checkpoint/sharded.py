"""Checkpoints in parts: a folder in which every process of a training writes what it holds.

The folder holds torch.distributed.checkpoint's files with the tensors that are spread over processes, and ``state.pth``
with everything else, where those tensors stand on the meta device. It can be read by any number of processes.

torch's own reader unpickles the list of contents (``.metadata``) and every value that is not a tensor, which runs
whatever code a file contains. Here the list is read with nothing but the classes that it consists of, other values
are refused, and tensors are loaded with ``weights_only``.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from detectron2.utils import comm
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException

from ..errors import CheckpointError, StorageError
from .files import disk_is_full, read_checkpoint, write_atomically

__all__ = ["by_main_process", "fill", "leaves", "read_sharded", "write_sharded"]

_STATE = "state.pth"
_METADATA = ".metadata"
_CLASSES = {
    (cls.__module__, cls.__name__): cls
    for cls in (
        metadata.ChunkStorageMetadata,
        metadata.Metadata,
        metadata.MetadataIndex,
        metadata.StorageMeta,
        metadata.TensorProperties,
        metadata.TensorStorageMetadata,
        metadata._MEM_FORMAT_ENCODING,
        filesystem._StorageInfo,
        torch.Size,
        torch.serialization._get_layout,
    )
}


def write_sharded(folder: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint in parts, whole or not at all; all processes must call it together.

    Args:
        folder: where to; one of that name is replaced. Its parent must exist and be shared by all processes.
        content: nested mappings and lists of plain values and tensors. Of a tensor spread over processes, each gives
            its part; the rest is the same everywhere, and the main process writes it.

    Raises:
        StorageError: when a disk is full.
        CheckpointError: when a process cannot write.
    """
    folder = Path(folder)
    temporary, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    spread: dict[str, Tensor] = {}
    rest = _without_parts(content, "", spread)

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()

    def finish() -> None:
        write_atomically(temporary / _STATE, lambda f: torch.save(rest, f))
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)

    try:
        by_main_process(begin)
        with _as_our_error(f"checkpoint {str(folder)!r} cannot be written"):
            dcp.save(spread, storage_writer=_Writer(temporary))
        by_main_process(finish)
    except Exception:
        if comm.is_main_process():
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_sharded(folder: str | os.PathLike, *, only: str | None = None, shapes_only: bool = False) -> dict[str, Any]:
    """Reads a checkpoint in parts, without executing anything in it; needs no other process.

    Args:
        folder: where :func:`write_sharded` put it.
        only: leave out everything but this key.
        shapes_only: leave the tensors that were spread over processes on the meta device, for :func:`fill`.

    Returns:
        what was written, with whole tensors on the CPU.

    Raises:
        CheckpointError: when it is incomplete, or contains code.
    """
    folder = Path(folder)
    _check_whole(folder)
    content = read_checkpoint(folder / _STATE)
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint {str(folder)!r}: its {_STATE} holds no mapping.")
    content = content if only is None else {key: value for key, value in content.items() if key == only}
    if shapes_only:
        return content
    whole = {key: torch.empty_like(tensor, device="cpu") for key, tensor in leaves(content) if tensor.is_meta}
    fill(folder, whole)
    return _with_tensors(content, "", whole)


def fill(folder: str | os.PathLike, places: Mapping[str, Tensor]) -> None:
    """Reads tensors of a checkpoint in parts, each process only what it has a place for.

    Args:
        folder: of the checkpoint.
        places: the keys that :func:`leaves` gives to tensors of the same shapes, whole or spread over processes.

    Raises:
        CheckpointError: when one is missing or damaged.
    """
    if not places:
        return
    with _as_our_error(f"checkpoint {os.fspath(folder)!r} cannot be read"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is disabled.*")
        dcp.load(dict(places), storage_reader=_Reader(folder), no_dist=True)


def leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested mappings and lists, with their keys."""
    if isinstance(tree, Tensor):
        yield key, tree
    elif isinstance(tree, Mapping | list | tuple):
        for name, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from leaves(value, f"{key}/{name}".lstrip("/"))


def by_main_process(action: Callable[[], Any]) -> Any:
    """Does something in the main process alone; all processes get its answer, or fail together.

    Raises:
        UserError: what the action raised; in the other processes one with the same words.
    """
    answer = failure = None
    if comm.is_main_process():
        try:
            answer = action()
        except Exception as error:
            failure = error
    kind = type(failure) if isinstance(failure, StorageError | CheckpointError) else CheckpointError
    answer, kind, words = comm.all_gather((answer, kind, str(failure) if failure else None))[0]
    if words is not None:
        raise failure or kind(words)
    return answer


def _without_parts(value: Any, key: str, spread: dict[str, Tensor]) -> Any:
    """A copy in which tensors spread over processes are on the meta device, and those of GPUs on the CPU."""
    if isinstance(value, Tensor):
        value = value.detach()
        if not hasattr(value, "to_local"):
            return value.cpu()
        spread[key] = value
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    if isinstance(value, Mapping):
        return {name: _without_parts(item, f"{key}/{name}".lstrip("/"), spread) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_parts(item, f"{key}/{i}".lstrip("/"), spread) for i, item in enumerate(value))
    return value


def _with_tensors(value: Any, key: str, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return tensors.get(key, value)
    if isinstance(value, Mapping):
        return {name: _with_tensors(item, f"{key}/{name}".lstrip("/"), tensors) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_tensors(item, f"{key}/{i}".lstrip("/"), tensors) for i, item in enumerate(value))
    return value


class _Writer(dcp.FileSystemWriter):
    """Tells a full disk from other failures, where it happens: the error loses its number on the way to the others."""

    def write_data(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().write_data(*args, **kwargs)
        except Exception as error:
            if disk_is_full(error):
                raise StorageError(f"no space left for {str(self.path)!r}: make room there.") from None
            raise


class _Reader(dcp.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        return _read_metadata(Path(self.path))


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "pathlib":  # where it was written, which is of no interest
            return lambda *parts: "/".join(map(str, parts))
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) not in _CLASSES:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return _CLASSES[module, name]


def _read_metadata(folder: Path) -> metadata.Metadata:
    path = folder / _METADATA
    if not path.is_file():
        raise CheckpointError(f"checkpoint {str(folder)!r} is incomplete: it has no {_METADATA}.")
    try:
        with open(path, "rb") as f:
            content = _MetadataUnpickler(f).load()
        parts = content.storage_data.values()
        names = {part.relative_path for part in parts}
        plain = all(isinstance(value, metadata.TensorStorageMetadata) for value in content.state_dict_metadata.values())
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {str(folder)!r}: its {_METADATA} is refused, since reading it could run code ({error})."
        ) from error
    except Exception as error:
        raise CheckpointError(f"checkpoint {str(folder)!r}: its {_METADATA} is damaged ({error}).") from error
    if not plain:
        raise CheckpointError(f"checkpoint {str(folder)!r} holds pickled values and is refused.")
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"checkpoint {str(folder)!r} is refused: it refers to {outside[0]!r} outside of it.")
    return content


def _check_whole(folder: Path) -> None:
    """Whether every part is where the list says; the tensors inside are not read."""
    parts = defaultdict(list)
    for part in _read_metadata(folder).storage_data.values():
        parts[part.relative_path].append((part.offset, part.length))
    for name, places in parts.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"checkpoint {str(folder)!r} is incomplete: {name} is missing.")
        size = path.stat().st_size
        with open(path, "rb") as f:
            for offset, length in places:
                f.seek(offset)
                if offset + length > size or f.read(2) != b"PK":  # each part is a file of torch.save
                    raise CheckpointError(f"checkpoint {str(folder)!r} is damaged: {name} ({size} bytes) is not whole.")


@contextlib.contextmanager
def _as_our_error(what: str) -> Iterator[None]:
    try:
        yield
    except CheckpointException as error:
        failures = [failure for failure, _ in error.failures.values()]
        for kind in (StorageError, CheckpointError):
            if found := [failure for failure in failures if isinstance(failure, kind)]:
                raise found[0] from error
        reason = (str(failures[0]) or type(failures[0]).__name__).splitlines()[0]
        raise CheckpointError(f"{what}: {reason}") from error


def _sync(folder: Path) -> None:
    """Makes a renaming last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
