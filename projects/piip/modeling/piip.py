"""PIIP as a Detectron2 backbone: the pyramid of branches, merging, output maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .backbone import PyramidBackbone, token_map
from .branch_pyramid import BlockGroups, BranchPyramid
from .branches import Branch
from .merging import BranchMerge, StageMerge
from .necks import SimplePyramidNeck, StageNeck

__all__ = ["PIIP"]


class PIIP(BranchPyramid, PyramidBackbone):
    """Parameter-inverted image pyramid network: several branches look at one image at several resolutions.

    The branches exchange features as in :class:`~.branch_pyramid.BranchPyramid`; then all are merged on the finest
    grid, in the width of the last branch, and a pyramid of maps is made from there.

    Source: PIIP (arXiv:2406.04330; arXiv:2501.07783), Sec. 3.

    Args:
        branches: from the highest resolution (the smallest model) to the lowest (the largest).
        resolutions: pixels per side that each branch is meant for, see :class:`~.branch_pyramid.BranchPyramid`.
        interaction_indexes: the number of interaction steps, or the block ranges of every step and branch.
        interaction: keyword arguments of every :class:`~piip.modeling.interaction.Injector`.
        interaction_pairs: which branches exchange features and in which order; all neighbours by default.
        out_interaction_indexes: for branches with stages ("regular FPN"): the branches are merged into an output map
            after each of these steps, counted from 0, and after the last one. None: once at the end, and the simple
            pyramid from there.
        out_features: output maps, some of ``c2`` ... ``c5`` (strides 4 ... 32).
        size_divisibility: what padded batches must be a multiple of, in pixels.
        use_act_checkpoint: recompute branches and interactions in the backward pass.
        overlap_branches: in inference, run the blocks between two interactions on a CUDA stream per branch.

    Shape:
        (B, 3, H, W) -> c2 (B, C, H/4, W/4), c3 (B, C, H/8, W/8), c4 (B, C, H/16, W/16), c5 (B, C, H/32, W/32)
        for 16-pixel patches, where C is the width of the last branch, with stages: at the step of the map.

    Raises:
        ConfigError: for branches, resolutions or groups that do not fit together, or an input size that does not
            fit the patches.
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        resolutions: Sequence[int],
        interaction_indexes: int | BlockGroups = 12,
        interaction: Mapping[str, object] | None = None,
        interaction_pairs: Sequence[Sequence[int]] | None = None,
        out_interaction_indexes: Sequence[int] | None = None,
        out_features: Sequence[str] = ("c2", "c3", "c4", "c5"),
        size_divisibility: int = 32,
        use_act_checkpoint: bool = False,
        overlap_branches: bool = False,
    ) -> None:
        super().__init__(
            branches,
            resolutions,
            interaction_indexes,
            interaction,
            interaction_pairs,
            use_act_checkpoint,
            overlap_branches,
            size_divisibility=size_divisibility,
        )
        branches = list(self.branches)
        if out_interaction_indexes is None:
            self.out_steps: list[int] = []
            self.merge = BranchMerge(self.widths(-1), branches[-1].out_channels[-1])
            self.neck: nn.Module = SimplePyramidNeck(self.merge.out_channels, _only_stride(branches[0]), out_features)
        else:
            self.out_steps = _check_out_steps(out_interaction_indexes, len(self.interactions))
            self.stage_merges = nn.ModuleDict({str(step): self._make_stage_merge(step) for step in self.out_steps})
            self.merge = self._make_stage_merge(-1)
            strides = [branches[0].strides[self.groups[0][step][1]] for step in (*self.out_steps, -1)]
            widths = [m.out_channels for m in (*self.stage_merges.values(), self.merge)]
            if len(set(strides)) == 1 and len(strides) == 4:
                self.neck = SimplePyramidNeck(widths, strides[0], out_features)
            else:
                self.neck = StageNeck(widths, strides, out_features)

    def _make_stage_merge(self, step: int) -> StageMerge:
        widths = self.widths(step)
        return StageMerge(widths, widths[-1])

    def replace_branch(self, index: int, branch: Branch) -> None:
        """Puts another network in a branch's place, with fresh interaction units and projection around it.

        Args:
            index: which branch; not the last one, whose width is the output width.
            branch: must have as many blocks as the one it replaces.

        Raises:
            ConfigError: when it cannot take the place.
        """
        old = self.branches[index]
        if index % len(self.branches) == len(self.branches) - 1 or branch.num_blocks != old.num_blocks:
            raise ConfigError(
                f"branch {index} with {old.num_blocks} blocks cannot be replaced by one with {branch.num_blocks}; "
                "all but the last branch can be, by one of the same depth."
            )
        like = self.merge.weights[0]  # gives device and type to what is new
        self.branches[index] = branch.to(like)
        for step, units in enumerate(self.interactions):
            for position, pair in enumerate(self.pairs):
                if index in pair:
                    units[position] = self.make_unit(step, *pair).to(like)
        merges = {**getattr(self, "stage_merges", {}), -1: self.merge}
        for step, merge in merges.items():
            width = self.widths(int(step))[index]
            merge.projections[index] = merge.make_projection(width, last=False).to(like)
        self.train(self.training)  # new modules start in training mode

    def compute_maps(self, image: Tensor, dtype: torch.dtype) -> Tensor | list[Tensor]:
        stages = []
        for step, states in enumerate(self.run_steps(image, dtype)):
            if step in self.out_steps:
                stages.append(self.stage_merges[str(step)]([token_map(state) for state in states]))
        merged = self.merge([token_map(state) for state in states])
        return [*stages, merged] if stages else merged


def _only_stride(branch: Branch) -> int:
    """The stride of a branch whose grid never changes."""
    if len(set(branch.strides)) > 1:
        raise ConfigError(
            f"the first branch, {type(branch).__name__}, has stages with strides {sorted(set(branch.strides))}, and "
            "the simple pyramid is made from one stride; set out_interaction_indexes for a map per stage."
        )
    return branch.strides[-1]


def _check_out_steps(indexes: Sequence[int], num_steps: int) -> list[int]:
    steps = [int(index) for index in indexes]
    if steps != sorted(set(steps)) or not all(0 <= step < num_steps - 1 for step in steps):
        raise ConfigError(
            f"out_interaction_indexes={steps} must be rising interaction steps from 0 to {num_steps - 2}; "
            "the last step always gives an output."
        )
    return steps
