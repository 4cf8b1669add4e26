"""Converting weights between our names and the released layout, and writing them for others to read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..modeling.branch_pyramid import BranchPyramid
from ..modeling.branches import BEiTBranch, Branch, ConvNeXtBranch, LSNetBranch
from ..modeling.branches.beit import relative_position_index
from ..modeling.lsnet import LSNet, LSNetBody, LSNetClassifier
from ..modeling.piip import PIIP
from ..modeling.piip_classifier import PIIPClassifier
from ..modeling.single_branch import SingleBranch
from .files import atomic_path
from .official import official_names
from .official_lsnet import fit_anchors, indices

__all__ = ["DTYPES", "check_target", "released_extras", "to_official", "write_weights"]

DTYPES = {"keep": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def to_official(module: nn.Module, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The weights of a model in the layout of the released checkpoints: the inverse of ``load_official``.

    Tensors are renamed, not copied. What the released models have without using it gets neutral values
    (:func:`released_extras`), so that the released code can load the result strictly.

    Args:
        module: a PIIP, SingleBranch or LSNet backbone, a classifier, or a model around one; also on the meta device, if
            ``state_dict`` is given.
        state_dict: weights by the names of the module; by default its own.

    Returns:
        released name -> tensor, with ``backbone.`` before those of a detector's backbone.

    Raises:
        CheckpointError: when ``state_dict`` belongs to another model.
        TypeError: when no released model corresponds to the module.
    """
    own = module.state_dict()
    state = own if state_dict is None else state_dict
    if unknown := [name for name in state if name not in own]:
        raise CheckpointError(
            f"{len(unknown)} of {len(state)} tensors are not in the model ({unknown[0]} first); give the weights of "
            f"this {type(module).__name__}."
        )
    names = official_names(module)
    out = fit_anchors(module, {names[name]: tensor for name, tensor in state.items() if name in names}, inverse=True)
    like = next((tensor for tensor in out.values() if tensor.is_floating_point()), torch.empty(0))
    for name, tensor in released_extras(module).items():
        out.setdefault(name, tensor.to(like.dtype) if tensor.is_floating_point() else tensor)
    return out


def released_extras(module: nn.Module) -> dict[str, Tensor]:
    """What the released form of a model has beyond ours, by released name, with neutral values.

    The released three-branch detectors without the finest map keep the layers that made it, and some families carry
    tensors that never enter the computation.

    Raises:
        TypeError: when no released model corresponds to the module.
    """
    if isinstance(module, Branch):
        return next((_EXTRAS[kind](module) for kind in type(module).__mro__ if kind in _EXTRAS), {})
    if isinstance(module, LSNetBody):
        return indices(module)
    if isinstance(module, SingleBranch):
        return released_extras(module.branch)
    if isinstance(module, BranchPyramid):
        count = len(module.branches)
        extras = {
            f"branch{count - k}.{name}": tensor
            for k, branch in enumerate(module.branches)
            for name, tensor in released_extras(branch).items()
        }
        if count == 3 and isinstance(module, PIIP) and not module.out_steps and "c2" not in module.output_shape():
            extras |= _unused_finest_level(module.merge.out_channels)
        return extras
    for child in module.modules():
        if isinstance(child, PIIPClassifier | LSNetClassifier):
            return released_extras(child)
        if isinstance(child, PIIP | SingleBranch | LSNet):
            return {f"backbone.{name}": tensor for name, tensor in released_extras(child).items()}
    raise TypeError(f"{type(module).__name__} contains no backbone that has released checkpoints")


def _unused_finest_level(width: int) -> dict[str, Tensor]:
    """The two deconvolutions and the normalisation between them."""
    shapes = {"0.weight": (width, width, 2, 2), "3.weight": (width, width, 2, 2)}
    shapes |= dict.fromkeys(("0.bias", "1.weight", "1.bias", "3.bias"), (width,))
    return {f"fpn1.{name}": torch.zeros(shape) for name, shape in sorted(shapes.items())}


def _convnext_extras(branch: ConvNeXtBranch) -> dict[str, Tensor]:
    width = branch.out_channels[-1]
    return {
        "convnext_model.layernorm.weight": torch.ones(width),
        "convnext_model.layernorm.bias": torch.zeros(width),
    }


def _beit_extras(branch: BEiTBranch) -> dict[str, Tensor]:
    return {
        f"blocks.{k}.attn.relative_position_index": relative_position_index(block.attn.side)
        for k, block in enumerate(branch.blocks)
    }


_EXTRAS: dict[type[Branch], Callable] = {
    ConvNeXtBranch: _convnext_extras,
    BEiTBranch: _beit_extras,
    LSNetBranch: indices,
}


def write_weights(
    path: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    dtype: str = "keep",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes weights, whole or not at all.

    Args:
        path: ``.safetensors``, or ``.pth`` for a torch file with the weights under ``state_dict``.
        tensors: by any names.
        dtype: a key of :data:`DTYPES`; numbers that are not floating-point stay as they are.
        metadata: what the weights are, kept in the file (``meta`` in a torch file).

    Raises:
        ConfigError: for another suffix or type, or a folder that does not exist.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} is unknown; use one of {', '.join(DTYPES)}.")
    path = check_target(path)
    wanted = DTYPES[dtype]
    tensors = {name: tensor.to(wanted if tensor.is_floating_point() else None) for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        if path.endswith(".pth"):
            torch.save({"state_dict": tensors, "meta": dict(metadata or {})}, temporary)
        else:
            from safetensors.torch import save_file

            save_file(_separate(tensors), temporary, dict(metadata or {}))


def check_target(path: str | os.PathLike) -> str:
    """Refuses a path that :func:`write_weights` cannot write to, before anything is computed for it.

    Raises:
        ConfigError: for a suffix of no known format, or a folder that does not exist.
    """
    path = os.fspath(path)
    if not path.endswith((".safetensors", ".pth")):
        raise ConfigError(f"weights cannot be written to {path!r}; its name must end in .safetensors or .pth.")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise ConfigError(f"weights cannot be written to {path!r}; there is no folder {folder!r}.")
    return path


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors wants them: contiguous, and none in the memory of another."""
    separate: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in taken
        separate[name] = tensor.contiguous() if alone else tensor.clone(memory_format=torch.contiguous_format)
        taken.add(storage.data_ptr())
    return separate
