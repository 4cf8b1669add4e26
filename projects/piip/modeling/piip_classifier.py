"""PIIP as an image classifier."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ..errors import ConfigError
from .backbone import token_map
from .branch_pyramid import BlockGroups, BranchPyramid
from .branches import Branch, BranchState
from .merging import LinearMerge
from .pyramid import check_input

__all__ = ["PIIPClassifier"]

_HEADS = ("separate", "merged")
_TOKENS = ("first_patch", "class", "mean")


class PIIPClassifier(BranchPyramid):
    """Parameter-inverted image pyramid network with classification heads on top of its branches.

    Source: PIIP (arXiv:2501.07783), Sec. 4.5 and the released classifiers.

    Args:
        branches: from the highest resolution (the smallest model) to the lowest (the largest).
        resolutions: pixels per side of the copies of the image, highest first.
        num_classes: classes.
        head: ``"separate"``: LayerNorm and linear layer on every branch, whose logits are averaged, as in the released
            models. ``"merged"``: all branches merged on the finest grid by
            :class:`~piip.modeling.merging.LinearMerge`, then one LayerNorm, the mean over tokens, one linear layer.
        head_token: what separate heads look at. ``"first_patch"``: the token of the top left patch, which the released
            classifiers were trained and evaluated with instead of their class token. ``"class"``: the class token,
            which every branch must have then; the last interactions, which it never sees, are not trained.
            ``"mean"``: the mean of the normalised patch tokens.
        interaction_indexes: the number of interaction steps, or the block ranges of every step and branch.
        interaction: keyword arguments of every :class:`~piip.modeling.interaction.Injector`.
        interaction_pairs: which branches exchange features and in which order; all neighbours by default.
        use_act_checkpoint: recompute branches and interactions in the backward pass.
        overlap_branches: in inference, run the blocks between two interactions on a CUDA stream per branch.

    Attributes:
        num_classes: classes.
        input_size: ``(3, H, W)`` that the resolutions are about.

    Shape:
        normalised images (B, 3, H, W), H and W multiples of the first branch's stride -> logits (B, num_classes), in
        the type of the images.

    Raises:
        ConfigError: for arguments that do not fit together, or an input size that does not fit the patches.
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        resolutions: Sequence[int],
        num_classes: int = 1000,
        head: str = "separate",
        head_token: str = "first_patch",
        interaction_indexes: int | BlockGroups = 12,
        interaction: Mapping[str, object] | None = None,
        interaction_pairs: Sequence[Sequence[int]] | None = None,
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
        )
        for name, value, known in (("head", head, _HEADS), ("head_token", head_token, _TOKENS)):
            if value not in known:
                raise ConfigError(f"{name}={value!r} is unknown; use one of {list(known)}.")
        if num_classes < 1:
            raise ConfigError(f"num_classes={num_classes} must be at least 1.")
        if head == "merged" and head_token != "first_patch":
            raise ConfigError(f"head_token={head_token!r} is for separate heads; leave it out with head='merged'.")
        for k, branch in enumerate(self.branches):
            if head_token == "class" and not branch.num_prefix_tokens:
                raise ConfigError(
                    f"head_token='class' needs a class token, and branch {k}, a {type(branch).__name__}, has none; set "
                    "its class_token=True, or choose another head_token."
                )
        self.num_classes = num_classes
        self.input_size = (3, self.resolutions[0], self.resolutions[0])
        self.head_token = head_token
        if head_token == "class":
            # Interactions change patch tokens, which nothing looks at after the last step.
            self.interactions[-1].requires_grad_(False)
        widths = self.widths(-1)
        if head == "separate":
            self.heads = nn.ModuleList(_Head(width, num_classes) for width in widths)
        else:
            self.merge = LinearMerge(widths, widths[-1])
            self.head = _Head(widths[-1], num_classes)

    def forward(self, image: Tensor) -> Tensor:
        check_input(image, self.input_stride)
        dtype = next(self.parameters()).dtype
        states = deque(self.run_steps(image, dtype), maxlen=1).pop()  # only the last ones
        if hasattr(self, "merge"):
            merged = self.merge([token_map(state) for state in states])
            logits = self.head(merged.flatten(2).transpose(1, 2))
        else:
            logits = torch.stack(
                [head(self._looked_at(state)) for head, state in zip(self.heads, states, strict=True)]
            ).mean(0)
        return logits.to(image.dtype)

    def _looked_at(self, state: BranchState) -> Tensor:
        """The tokens that the head of a branch looks at, of which it takes the mean."""
        if self.head_token == "mean":
            return state.tokens
        return (state.prefix if self.head_token == "class" else state.tokens)[:, :1]


class _Head(nn.Module):
    """LayerNorm, the mean over tokens, a linear layer."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc = nn.Linear(width, num_classes)
        trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, C) -> logits (B, num_classes)."""
        return self.fc(self.norm(tokens).mean(1))
