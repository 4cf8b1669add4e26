"""Checkpoints of a model that is spread over processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StorageError
from .checkpointer import FINAL, Checkpointer
from .files import write_atomically
from .large import available_memory
from .sharded import by_main_process, fill, leaves, write_sharded

__all__ = ["ShardedCheckpointer", "put"]

logger = logging.getLogger(__name__)


class ShardedCheckpointer(Checkpointer):
    """Like :class:`Checkpointer`, but a checkpoint to resume from is a folder that every process writes a part of.

    It reads files as well as folders, and the parent reads its folders, so that a training may go on with any number of
    processes, spread over them or not. ``model_final`` and ``model_best`` are also (the latter: only) written as one
    ordinary file of the weights, if the main process has the memory for them. All methods must be called by all
    processes together. The checkpointable ``trainer`` must have an ``optimizer``.
    """

    def save(self, name: str, **extra: Any) -> None:
        """Writes the folder ``<name>`` with everything, and makes it the one to resume from."""
        if not self.save_dir:
            return
        content = self._content(extra)
        if name == FINAL:  # first, so that a kill in between is resumed from before both
            self._write_whole(name, extra)
        self._write_folder(name, content)
        by_main_process(lambda: self.tag_last_checkpoint(name))

    def save_weights(self, name: str, **extra: Any) -> None:
        """Writes the weights to use alone: ``<name>.pth``, or a folder when the memory is too small for that."""
        if self.save_dir and not self._write_whole(name, extra):
            self._write_folder(name, self._weights(extra))

    def _write_folder(self, name: str, content: Mapping[str, Any]) -> None:
        path = os.path.join(self.save_dir, name)
        self._write_with_room(lambda: write_sharded(path, content))
        logger.info("Saved %s", path)

    def _write_whole(self, name: str, extra: Mapping[str, Any]) -> bool:
        content = self._weights(extra)
        needed = sum(t.numel() * t.element_size() for _, t in leaves(content))
        free = by_main_process(available_memory)
        path = os.path.join(self.save_dir, f"{name}.pth")
        if free is not None and needed > free:
            logger.warning(
                "%s is not written: its %.1f GiB need to pass through the main process, which has %.1f GiB left. "
                "tools/convert_checkpoint.py makes such a file of the folder %s on a machine with more memory.",
                path, needed / 2**30, free / 2**30, os.path.splitext(path)[0],
            )  # fmt: skip
            return False
        # Every tensor is put together by all, one after the other, and kept by the main process.
        content["model"] = {key: _whole(tensor, self.save_to_disk) for key, tensor in content["model"].items()}

        def write() -> None:
            write_atomically(path, lambda f: torch.save(content, f))

        self._write_with_room(lambda: by_main_process(write))
        logger.info("Saved %s", path)
        return True

    def _write_with_room(self, write: Callable[[], None]) -> None:
        if self.before_save:
            by_main_process(self.before_save)
        try:
            write()
        except StorageError as error:
            removed = by_main_process(lambda: self.prune(1))
            if not removed:
                raise
            logger.warning("%s Removed %s, trying again.", error, ", ".join(removed))
            write()

    def resume(self, path: str, checkpoint: Mapping[str, Any]) -> None:
        """Continues from a checkpoint of this training, of which each process reads its part.

        Args:
            path: where it was read from.
            checkpoint: its content, with ``in_parts=True``.

        Raises:
            CheckpointError: when it was written for another model or optimizer.
        """
        self._keys = {id(tensor): key for key, tensor in leaves(checkpoint) if tensor.is_meta}
        self._folder = path
        trainer = dict(checkpoint["trainer"])
        if "optimizer" in trainer:
            trainer["optimizer"] = self._spread_state(trainer["optimizer"])
        super().resume(path, {**checkpoint, "trainer": trainer})

    def _put(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self._fill({tensors[name]: place for name, place in model.state_dict().items()})

    def _spread_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state of an optimizer, in which what has the shape of a parameter is spread as that is."""
        groups = self.checkpointables["trainer"].optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        spread, places = {}, {}
        for index, values in state["state"].items():
            spread[index] = dict(values)
            like = parameters[index] if index < len(parameters) else None
            for name, value in values.items():
                if not isinstance(value, Tensor):
                    continue
                if like is not None and hasattr(like, "to_local") and value.shape == like.shape:
                    spread[index][name] = places[value] = torch.empty_like(like, dtype=value.dtype)
                elif value.is_meta:
                    spread[index][name] = places[value] = torch.empty_like(value, device="cpu")
        self._fill(places)
        return {**state, "state": spread}

    def _fill(self, places: Mapping[Tensor, Tensor]) -> None:
        """Puts tensors of the checkpoint where they belong."""
        fill(self._folder, {self._keys[id(t)]: place.detach() for t, place in places.items() if t.is_meta})
        for tensor, place in places.items():
            if not tensor.is_meta:
                put(place, tensor)


@torch.no_grad()
def put(place: Tensor, tensor: Tensor) -> None:
    """Copies a whole tensor into one of its shape, or this process's part of it into one that is spread."""
    if hasattr(place, "to_local"):
        for dim, placement in enumerate(place.placements):
            if placement.is_shard():
                parts = tensor.chunk(place.device_mesh.size(dim), placement.dim)
                mine = place.device_mesh.get_coordinate()[dim]
                tensor = parts[mine] if mine < len(parts) else tensor.narrow(placement.dim, 0, 0)
        place = place.to_local()
    place.copy_(tensor)


def _whole(tensor: Tensor, keep: bool) -> Tensor | None:
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.detach().full_tensor()
    return tensor.cpu() if keep else None
