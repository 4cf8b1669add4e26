"""Checkpoints of a training: written whole or not at all, read without running code, the newest good one resumed."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from ..errors import CheckpointError, StorageError
from .files import check_intact, is_folder, read_checkpoint, tensors_of, write_atomically

__all__ = ["BEST", "FINAL", "Checkpointer", "find_checkpoint", "newest_good_checkpoint"]

logger = logging.getLogger(__name__)

FINAL = "model_final"
BEST = "model_best"
_LAST = "last_checkpoint"
# With the ending a file; without, a folder of a checkpoint in parts, see `sharded`.
_NUMBERED = re.compile(r"model_(\d+)(\.pth)?")


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, made safe against kills and hostile files.

    A file holds ``model`` (the weights to use), what every checkpointable gives (``trainer``: optimizer, iteration,
    hooks, seed), and with a moving average ``training_model``: ``model`` is the average then, and training goes on
    from ``training_model``.

    Args:
        model: wrapped for data-parallel training or not.
        save_dir: where checkpoints are written, by the main process alone.
        averaged: a copy of the model that holds the moving average of its weights.
        before_save: called before anything is written; may raise.
        checkpointables: objects with ``state_dict()`` and ``load_state_dict()``.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        averaged: nn.Module | None = None,
        before_save: Callable[[], None] | None = None,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.averaged = averaged
        self.before_save = before_save
        self.logger = logger

    def save(self, name: str, **extra: Any) -> None:
        """Writes ``<name>.pth`` with everything, and makes it the one to resume from."""
        if not self.save_dir or not self.save_to_disk:
            return
        self._write(name, self._content(extra))
        self.tag_last_checkpoint(f"{name}.pth")

    def save_weights(self, name: str, **extra: Any) -> None:
        """Writes ``<name>.pth`` with the weights to use alone; a training is not resumed from it."""
        if self.save_dir and self.save_to_disk:
            self._write(name, self._weights(extra))

    def _weights(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        return {"model": (self.averaged or self.model).state_dict(), **_plain(extra)}

    def _content(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        content = self._weights(extra)
        if self.averaged is not None:
            content["training_model"] = self.model.state_dict()
        for key, checkpointable in self.checkpointables.items():
            content[key] = _plain(checkpointable.state_dict())
        return content

    def _write(self, name: str, data: Mapping[str, Any]) -> None:
        if self.before_save:
            self.before_save()
        path = os.path.join(self.save_dir, f"{name}.pth")
        try:
            write_atomically(path, lambda f: torch.save(data, f))
        except StorageError as error:
            if not (removed := self.prune(1)):
                raise
            logger.warning("%s Removed %s, trying again.", error, ", ".join(removed))
            write_atomically(path, lambda f: torch.save(data, f))
        logger.info("Saved %s", path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Notes the file that a training resumes from."""
        content = last_filename_basename.encode()
        write_atomically(os.path.join(self.save_dir, _LAST), lambda f: f.write(content))

    def prune(self, max_to_keep: int) -> list[str]:
        """Removes numbered checkpoints except for the newest ``max_to_keep``; the final and the best one stay.

        Returns:
            the names of those removed.
        """
        old = _numbered(self.save_dir)[max_to_keep:] if self.save_dir and self.save_to_disk else []
        for path in old:
            if path.is_dir():
                # A kill in between shall not leave half a checkpoint under its name.
                path = path.rename(path.with_name(f".{path.name}.old"))
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return [path.name for path in old]

    def resume(self, path: str, checkpoint: Mapping[str, Any]) -> None:
        """Continues from a checkpoint of this training.

        Args:
            path: where it was read from, for messages.
            checkpoint: its content.

        Raises:
            CheckpointError: when it was written for another model or optimizer.
        """
        usable = tensors_of({"model": checkpoint["model"]})
        trained = tensors_of({"model": checkpoint.get("training_model") or checkpoint["model"]})
        self._load_exactly(self.model, trained, path)
        if self.averaged is not None:
            self._load_exactly(self.averaged, usable, path)
        for key, checkpointable in self.checkpointables.items():
            try:
                checkpointable.load_state_dict(checkpoint[key])
            except (KeyError, ValueError, RuntimeError) as error:
                raise CheckpointError(
                    f"checkpoint {path!r}: its {key} does not fit this training ({str(error).splitlines()[0]}); resume "
                    "with the config that it was written with, or start anew from its weights with "
                    f"train.init_checkpoint={path} and another train.output_dir."
                ) from error
        logger.info("Resumed from %s", path)

    def _load_exactly(self, model: nn.Module, tensors: Mapping[str, torch.Tensor], path: str) -> None:
        own = model.state_dict()
        wrong = [f"{name} is missing" for name in own if name not in tensors]
        wrong += [f"{name} is not in the model" for name in tensors if name not in own]
        wrong += [
            f"{name} is {tuple(t.shape)} but {tuple(own[name].shape)} in the model"
            for name, t in tensors.items()
            if name in own and t.shape != own[name].shape
        ]
        if wrong:
            raise CheckpointError(
                f"checkpoint {path!r} was written for another model ({len(wrong)} of {len(own)} tensors differ: "
                f"{'; '.join(wrong[:3])}{'; ...' if len(wrong) > 3 else ''}); resume with the config that it was "
                "written with, or choose another train.output_dir."
            )
        self._put(model, tensors)

    def _put(self, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        model.load_state_dict(tensors)

    def _load_file(self, filename: str) -> dict[str, Any]:
        # Detectron2 would unpickle whatever the file holds.
        data = read_checkpoint(filename)
        query = getattr(getattr(self, "_parsed_url_during_load", None), "query", "")  # of Detectron2's main branch
        if "matching_heuristics" in query:
            return {"model": tensors_of(data), "matching_heuristics": True}
        if filename.endswith(".pkl") and not (isinstance(data, Mapping) and "__author__" in data):
            return {"model": tensors_of(data), "__author__": "Caffe2", "matching_heuristics": True}
        return dict(data) if isinstance(data, Mapping) and "model" in data else {"model": tensors_of(data)}


def find_checkpoint(output_dir: str) -> str | None:
    """The weights of a training to evaluate: the best ones where there are any, else the last ones."""
    best = os.path.join(output_dir, BEST)
    if os.path.isfile(f"{best}.pth"):
        return f"{best}.pth"
    if is_folder(best):
        return best
    found = newest_good_checkpoint(output_dir)
    return found[0] if found else None


def newest_good_checkpoint(output_dir: str, in_parts: bool = False) -> tuple[str, dict[str, Any]] | None:
    """Reads the checkpoint that a training is resumed from.

    That is the one named in ``last_checkpoint``, or, with a warning, the newest older one that can be read. All
    processes read the one that the main process chose.

    Args:
        output_dir: of the training.
        in_parts: do not read whole what is large, for a process that needs only a part of it: tensors of files stay on
            the disk, those of checkpoints in parts are on the meta device.

    Returns:
        its path and content; None where no training has left one.

    Raises:
        CheckpointError: when there are checkpoints but none can be read, or a process cannot see them.
    """
    choice: tuple[str, dict[str, Any]] | None = None
    failure: CheckpointError | None = None
    if comm.is_main_process():
        try:
            choice = _choose(output_dir, in_parts)
        except CheckpointError as error:
            failure = error
    # A failure is told to all, so that no process waits for the others in vain.
    path, message = comm.all_gather((choice[0] if choice else None, str(failure) if failure else None))[0]
    if message is not None:
        raise failure or CheckpointError(message)
    if path is None:
        return None
    if choice is None:
        choice = path, _read(path, in_parts)
    return choice


def _read(path: str | Path, in_parts: bool) -> Any:
    if not os.path.isdir(path):
        return read_checkpoint(path, mmap=in_parts)
    from .sharded import read_sharded  # torch.distributed.checkpoint takes a while to import

    return read_sharded(path, shapes_only=in_parts)


def _choose(output_dir: str, in_parts: bool) -> tuple[str, dict[str, Any]] | None:
    tag = Path(output_dir, _LAST)
    if not tag.is_file():
        return None
    named = Path(output_dir, tag.read_text(encoding="utf-8", errors="replace").strip())
    others = [p for p in Path(output_dir).glob("model_*") if _resumable(p) and p != named]
    others.sort(key=lambda p: p.stat().st_mtime_ns, reverse=True)
    failures = []
    for path in [named, *others]:
        try:
            check_intact(path)
            checkpoint = _read(path, in_parts)
        except CheckpointError as error:
            failures.append(str(error))
            continue
        if isinstance(checkpoint, Mapping) and {"model", "trainer"} <= checkpoint.keys():
            for failure in failures:
                logger.warning("%s Resuming from the older %s instead.", failure, path)
            return str(path), dict(checkpoint)
        failures.append(f"checkpoint '{path}' holds weights, but no state of a training.")
    raise CheckpointError(
        f"no checkpoint in {output_dir!r} can be resumed from: {failures[0].rstrip('.')}; remove {str(tag)!r} to start "
        "anew."
    )


def _resumable(path: Path) -> bool:
    return path.name.removesuffix(".pth") != BEST and (path.suffix == ".pth" or path.is_dir())


def _numbered(folder: str) -> list[Path]:
    """Periodic checkpoints, newest first."""
    paths = [p for p in Path(folder).glob("model_*") if _NUMBERED.fullmatch(p.name)]
    return sorted(paths, key=lambda p: -int(_NUMBERED.fullmatch(p.name)[1]))


def _plain(value: Any) -> Any:
    """Replaces what a weights-only reader would refuse: values that came from configs or numpy."""
    if isinstance(value, (DictConfig, ListConfig)):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(v) for v in value)
    return value
