"""Branches that look at one image at several resolutions and exchange features: what all PIIP models are made of."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError, did_you_mean
from .branches import Branch, BranchState
from .interaction import Injector, InteractionUnit
from .overlap import run_branches
from .pyramid import image_pyramid

__all__ = ["BlockGroups", "BranchPyramid", "block_groups"]

BlockGroups = Sequence[Sequence[Sequence[int]]]


class BranchPyramid(nn.Module):
    """The part of a PIIP that detectors, segmentors and classifiers share: pyramid, branches and interactions.

    Everywhere, branches are ordered from the highest resolution (the smallest model) to the lowest (the largest
    model), as in the name TSB 1120/896/448. In every interaction step each branch runs its next group of blocks;
    then neighbouring branches exchange features, the finest pair first.

    Source: PIIP (arXiv:2406.04330; arXiv:2501.07783), Sec. 3.

    Args:
        branches: one :class:`~piip.modeling.branches.Branch` per resolution.
        resolutions: pixels per side each branch is meant for; only their ratios change the result, the network
            accepts any input size that is a multiple of the first branch's stride (any at all if that branch rounds
            sizes up).
        interaction_indexes: the number of interaction steps, for which the blocks of every branch are split as
            evenly as possible (larger groups last), or the inclusive ``[first, last]`` block ranges of every step,
            one list per branch.
        interaction: keyword arguments of every :class:`~piip.modeling.interaction.Injector`.
        interaction_pairs: which branches exchange features and in which order, as ``[finer, coarser]`` positions in
            ``branches``; all neighbours by default, the finest pair first.
        use_act_checkpoint: recompute branches and interactions in the backward pass.
        overlap_branches: in inference, run the blocks between two interactions on a CUDA stream per branch.
        others: for the class that this one is combined with.

    Attributes:
        input_stride: what the sides of an input must be a multiple of, in pixels.
        groups: the inclusive block ranges of every step, for every branch.
        pairs: the pairs of branches that exchange features, in their order.

    Raises:
        ConfigError: for branches, resolutions or groups that do not fit together.
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        resolutions: Sequence[int],
        interaction_indexes: int | BlockGroups = 12,
        interaction: Mapping[str, object] | None = None,
        interaction_pairs: Sequence[Sequence[int]] | None = None,
        use_act_checkpoint: bool = False,
        overlap_branches: bool = False,
        **others: object,
    ) -> None:
        super().__init__(**others)
        branches, resolutions = list(branches), [int(r) for r in resolutions]
        _check_resolutions(branches, resolutions)
        self.resolutions = resolutions
        self.input_stride = 1 if branches[0].rounds_up else max(branches[0].strides)
        self.branches = nn.ModuleList(branches)
        self.groups = _check_groups(branches, interaction_indexes)
        self.interaction_kwargs = _check_interaction(interaction or {})
        self.pairs = _check_pairs(interaction_pairs, len(branches))
        self.interactions = nn.ModuleList(
            nn.ModuleList(self.make_unit(step, *pair) for pair in self.pairs) for step in range(len(self.groups[0]))
        )
        self.overlap_branches = overlap_branches
        self.use_act_checkpoint = False
        if use_act_checkpoint:
            self.set_grad_checkpointing()

    def widths(self, step: int) -> list[int]:
        """Width of every branch after an interaction step."""
        return [branch.out_channels[groups[step][1]] for branch, groups in zip(self.branches, self.groups, strict=True)]

    def make_unit(self, step: int, fine: int, coarse: int) -> InteractionUnit:
        """The unit between two branches after interaction step ``step``."""
        widths = self.widths(step)
        try:
            return InteractionUnit(widths[fine], widths[coarse], **self.interaction_kwargs)
        except ConfigError as error:
            raise ConfigError(f"between branches {fine} and {coarse} at interaction step {step}: {error}") from error

    def run_steps(self, image: Tensor, dtype: torch.dtype) -> Iterator[list[BranchState]]:
        """Runs the pyramid on a normalised batch (B, 3, H, W).

        Args:
            image: of the highest resolution.
            dtype: type of the weights.

        Yields:
            the states of all branches after every interaction step.
        """
        copies = [copy.to(dtype) for copy in image_pyramid(image, self.resolutions)]
        states = run_branches(
            lambda branch, copy: branch.embed(copy), self.branches, copies, overlap=self.overlap_branches
        )
        for step, units in enumerate(self.interactions):
            ranges = [groups[step] for groups in self.groups]
            states = run_branches(_run, self.branches, states, ranges, overlap=self.overlap_branches)
            for (fine, coarse), unit in zip(self.pairs, units, strict=True):
                states[fine], states[coarse] = self._interact(unit, states[fine], states[coarse])
            yield states

    def _interact(self, unit: InteractionUnit, fine: BranchState, coarse: BranchState) -> list[BranchState]:
        args = (fine.tokens, coarse.tokens, fine.grid_size, coarse.grid_size)
        if self.use_act_checkpoint and self.training:
            tokens = checkpoint(unit, *args, use_reentrant=False)
        else:
            tokens = unit(*args)
        return [state.replace(tokens=t) for state, t in zip((fine, coarse), tokens, strict=True)]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations of all branches and interactions in the backward pass."""
        self.use_act_checkpoint = enable
        for branch in self.branches:
            branch.set_grad_checkpointing(enable)


def _run(branch: Branch, state: BranchState, blocks: Sequence[int]) -> BranchState:
    return branch.run(state, blocks[0], blocks[1] + 1)


def block_groups(num_blocks: int, steps: int) -> list[list[int]]:
    """Splits blocks into consecutive groups as evenly as possible, larger groups last.

    Returns:
        ``steps`` inclusive ranges ``[first, last]``; 32 blocks in 12 steps give four pairs, then eight triples.
    """
    size, larger = divmod(num_blocks, steps)
    sizes = [size] * (steps - larger) + [size + 1] * larger
    ends = [sum(sizes[: i + 1]) for i in range(steps)]
    return [[end - n, end - 1] for n, end in zip(sizes, ends, strict=True)]


def _check_pairs(pairs: Sequence[Sequence[int]] | None, num_branches: int) -> list[tuple[int, int]]:
    if pairs is None:
        return [(k, k + 1) for k in range(num_branches - 1)]
    try:
        found = [tuple(int(k) for k in pair) for pair in pairs]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"interaction_pairs={pairs} must be a list of [finer, coarser] pairs of branches.") from error
    for pair in found:
        if len(pair) != 2 or not 0 <= pair[0] < pair[1] < num_branches or found.count(pair) > 1:
            raise ConfigError(
                f"interaction_pairs={[list(p) for p in found]}: {list(pair)} must be two different branches, the finer "
                f"one first, out of 0 to {num_branches - 1}, and occur once."
            )
    return found


def _check_groups(branches: Sequence[Branch], indexes: int | BlockGroups) -> list[list[list[int]]]:
    """The block ranges of every step for every branch, from either form of ``interaction_indexes``."""
    if isinstance(indexes, int):
        fewest = min(b.num_blocks for b in branches)
        if not 1 <= indexes <= fewest:
            raise ConfigError(
                f"interaction_indexes={indexes} must be between 1 and {fewest}, the blocks of the shallowest branch."
            )
        return [block_groups(b.num_blocks, indexes) for b in branches]
    try:
        groups = [[[int(first), int(last)] for first, last in branch] for branch in indexes]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"interaction_indexes={indexes} must be a number, or one list of [first, last] block ranges per branch."
        ) from error
    counts = [len(branch) for branch in groups]
    if len(groups) != len(branches) or len(set(counts)) != 1:
        raise ConfigError(
            f"interaction_indexes lists {counts} block ranges per branch for {len(branches)} branches; "
            "give one list per branch, all of the same length."
        )
    for k, (branch, ranges) in enumerate(zip(branches, groups, strict=True)):
        covered = [i for first, last in ranges for i in range(first, last + 1)]
        if covered != list(range(branch.num_blocks)) or any(first > last for first, last in ranges):
            raise ConfigError(
                f"interaction_indexes[{k}]={ranges} must cover blocks 0 to {branch.num_blocks - 1} of branch {k} once "
                f"each, in order and without empty ranges; interaction_indexes={counts[0]} would split them evenly."
            )
    return groups


def _check_interaction(settings: Mapping[str, object]) -> dict[str, object]:
    known = [name for name, p in inspect.signature(Injector).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in settings:
        if name not in known:
            raise ConfigError(f"interaction.{name} is unknown; known: {', '.join(known)}.{did_you_mean(name, known)}")
    return dict(settings)


def _check_resolutions(branches: Sequence[Branch], resolutions: Sequence[int]) -> None:
    if not branches or len(branches) != len(resolutions):
        raise ConfigError(
            f"PIIP got {len(branches)} branches and resolutions {list(resolutions)}; give one resolution per branch."
        )
    if list(resolutions) != sorted(resolutions, reverse=True):
        raise ConfigError(
            f"resolutions={list(resolutions)} must fall from the first branch to the last; "
            "order the branches from the smallest model at the highest resolution to the largest at the lowest."
        )
    for k, (branch, resolution) in enumerate(zip(branches, resolutions, strict=True)):
        patch = branch.embed_stride
        if resolution < patch or resolution % patch:
            raise ConfigError(
                f"resolutions[{k}]={resolution} is not divisible by the {patch}-pixel patches of branch {k}; "
                f"the nearest one that is: {max(round(resolution / patch), 1) * patch}."
            )
