"""What a model keeps of every image between the forward and the backward pass, or at once, without running it.

The forward pass runs on tensors without memory, see :mod:`.fake`.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .fake import FusedAttention, without_memory

__all__ = ["activation_bytes", "peak_bytes", "saved_bytes"]


def activation_bytes(
    model: nn.Module, size: tuple[int, int], amp: torch.dtype | None = torch.bfloat16, device: str = "cuda"
) -> tuple[int, int]:
    """Bytes that autograd saves per image: what two images and three images need, subtracted.

    So what does not grow with the batch is left out: copies of the weights that autocast makes, position embeddings.

    Args:
        model: see :func:`saved_bytes`.
        size: height and width of the padded images.
        amp: type of autocast; None for none.
        device: where the model would be trained.

    Returns:
        those of the backbone with its neck, and those of all that follows.
    """
    with without_memory(model, device) as fake:
        two, three = (_saved(fake, (images, *size), amp, device) for images in (2, 3))
    return three[0] - two[0], three[1] - two[1]


def saved_bytes(
    model: nn.Module,
    batch: tuple[int, int, int],
    amp: torch.dtype | None = torch.bfloat16,
    device: str = "cuda",
) -> tuple[int, int]:
    """Bytes that autograd saves in a forward pass in training mode, parameters and buffers not counted.

    Every memory block counts once, however many operators saved a view of it. Attention is counted as its fused form,
    which keeps queries, keys, values and the result, but no weights. Whatever a model recomputes in the backward pass
    is not saved.

    Args:
        model: a backbone, or a Mask R-CNN, whose heads then get as many proposals as its training samples; on any
            device, it stays as it is.
        batch: images, height, width.
        amp: type of autocast; None for none.
        device: where the model would be trained; fused attention is that of the CPU or of CUDA.

    Returns:
        those of the backbone with its neck, and those of all that follows.
    """
    with without_memory(model, device) as fake:
        return _saved(fake, batch, amp, device)


def peak_bytes(
    model: nn.Module, size: tuple[int, int], dtype: torch.dtype = torch.bfloat16, device: str = "cuda"
) -> int:
    """Most bytes that results take at once in inference, per image: what two images need less what one does.

    Weights are not counted, nor is memory that operators need only for themselves.

    Args:
        model: a backbone; it stays as it is.
        size: height and width of the padded images.
        dtype: of weights and images.
        device: where the model would run.
    """
    peaks = []
    with without_memory(model, device, dtype) as fake, torch.no_grad(), FusedAttention():
        fake.eval()
        for images in (1, 2):
            image = torch.empty(images, 3, *size, device=device, dtype=dtype)
            with _Storages() as storages:
                fake(image)
            peaks.append(storages.peak)
    return peaks[1] - peaks[0]


def _saved(model: nn.Module, batch: tuple[int, int, int], amp: torch.dtype | None, device: str) -> tuple[int, int]:
    weights = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, Any] = {}  # holding the storages: an address is not used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    images, height, width = batch
    image = torch.empty(images, 3, height, width, device=device)
    totals = []
    with saved_tensors_hooks(pack, lambda tensor: tensor), _autocast(device, amp), FusedAttention():
        for _ in _training_forward(model, image):
            totals.append(sum(storage.nbytes() for storage in saved.values()))
    return totals[0], totals[-1] - totals[0]


def _training_forward(model: nn.Module, image: Tensor) -> Iterator[None]:
    """Runs what has weights, without the steps between that have none; stops after the backbone and after the heads."""
    features = getattr(model, "backbone", model)(image)
    yield
    if not isinstance(model, GeneralizedRCNN):
        return
    outputs: list[Any] = []  # as long as they live, so does what was saved for them
    proposals, heads = model.proposal_generator, model.roi_heads
    if isinstance(proposals, RPN):
        outputs.append(proposals.rpn_head([features[name] for name in proposals.in_features]))
    # A cascade's heads are a list; the zoo's large models have one.
    if isinstance(heads, StandardROIHeads) and not isinstance(heads.box_head, nn.ModuleList):
        source = features[heads.box_in_features[0]]
        # What the pooler makes of the maps needs gradients, like them.
        pooled = partial(source.new_empty, requires_grad=True)
        count = heads.batch_size_per_image * len(image)
        box = pooled((count, source.shape[1], *heads.box_pooler.output_size))
        outputs.append(heads.box_predictor(heads.box_head(box)))
        if heads.mask_on:
            count = int(heads.positive_fraction * heads.batch_size_per_image) * len(image)
            mask = pooled((count, source.shape[1], *heads.mask_pooler.output_size))
            outputs.append(heads.mask_head.layers(mask))
    yield


class _Storages(TorchDispatchMode):
    """Follows the memory that operators take for results, until it is given back."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage(), given)
        return out

    def _add(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key not in self.known and key not in given:
            self.known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@contextlib.contextmanager
def _autocast(device: str, dtype: torch.dtype | None) -> Iterator[None]:
    """torch.autocast, which switches itself off where the device is missing."""
    if dtype is None:
        yield
        return
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])
