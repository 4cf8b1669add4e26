"""The parts of a pyramid that run as a whole: what is spread over GPUs, or compiled, one by one."""

from __future__ import annotations

from torch import nn

from .branches import Branch
from .interaction import InteractionUnit
from .merging import BranchMerge
from .necks import SimplePyramidNeck, StageNeck

__all__ = ["network_parts"]


def network_parts(model: nn.Module) -> list[nn.Module]:
    """Blocks of branches, interactions, merging and neck, as far as they have parameters; empty without branches."""
    found: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, Branch):
            found += module.block_modules()
        elif isinstance(module, InteractionUnit | BranchMerge | SimplePyramidNeck | StageNeck):
            found.append(module)
    return [part for part in dict.fromkeys(found) if any(p.dim() for p in part.parameters())]
