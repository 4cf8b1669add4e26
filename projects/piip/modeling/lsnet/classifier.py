"""LSNet as an image classifier with the interface of timm's models."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from timm.layers import SelectAdaptivePool2d
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ...errors import ConfigError
from .body import STRIDES, LSNetBody

__all__ = ["Head", "LSNetClassifier"]


class Head(nn.Sequential):
    """BatchNorm and a linear layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        linear = nn.Linear(channels, num_classes)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        super().__init__(OrderedDict(bn=nn.BatchNorm1d(channels), l=linear))


class LSNetClassifier(LSNetBody):
    """LSNet with global pooling and one head, or two of which one learns from a teacher.

    Source: LSNet (arXiv:2503.23135), Sec. 4.1.

    Args:
        dims: widths of the four stages, see :data:`~.body.VARIANTS`.
        depths: their numbers of blocks.
        img_size: pixels per side that the tables of attention biases are for. Other sizes can be run; the biases are
            then resized by offset.
        num_classes: classes, 0 for none: the model then returns the pooled features.
        distillation: whether there is a second head. In training the model returns what both say; else their mean.
        in_chans: channels of the image.
        global_pool: pooling by timm's name; ``""`` for none, if there are no classes.
        drop_rate: dropout before the heads.
        drop_path_rate: stochastic depth rate of the last block; it grows linearly from 0 in the first.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes), or a pair of them

    Raises:
        ConfigError: for sizes that do not fit together.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        *,
        img_size: int | Sequence[int] = 224,
        num_classes: int = 1000,
        distillation: bool = False,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        sides = {img_size} if isinstance(img_size, int) else set(img_size)
        if len(sides) > 1 or min(sides) < 1:
            raise ConfigError(f"img_size={img_size} must be the side of a square, in pixels.")
        super().__init__(
            dims,
            depths,
            resolution=-(-sides.pop() // STRIDES[-1]),
            bias_resize="offsets",
            drop_path_rate=drop_path_rate,
            in_channels=in_chans,
        )
        self.num_features = self.head_hidden_size = self.dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": stride, "module": f"blocks{i + 1}"}
            for i, (dim, stride) in enumerate(zip(self.dims, STRIDES, strict=True))
        ]
        self.head_drop = nn.Dropout(drop_rate)
        self.distilled_training = self.distillation = distillation
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Gives the model fresh heads for another number of classes (0: none), and another pooling."""
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        if num_classes and self.global_pool.is_identity():
            raise ConfigError(f"num_classes={num_classes} needs a global_pool, such as 'avg'; there is none.")
        self.num_classes = num_classes
        like = next(self.parameters())  # gives device and type to what is new
        width = self.num_features * self.global_pool.feat_mult()
        for name in ("head", "head_dist") if self.distillation else ("head",):
            head = Head(width, num_classes).to(like) if num_classes else nn.Identity()
            setattr(self, name, head.train(self.training))

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The head, or both."""
        return (self.head, self.head_dist) if self.distillation else self.head

    @torch.jit.ignore
    def set_distilled_training(self, enable: bool = True) -> None:
        """Whether a model with two heads returns what each of them says in training, instead of the mean."""
        self.distilled_training = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """How timm groups the parameters by depth."""
        return {"stem": r"^patch_embed", "blocks": r"^blocks(\d)" if coarse else r"^blocks(\d)\.(\d+)"}

    def forward_features(self, x: Tensor) -> Tensor:
        """The map of the last stage, (B, dims[3], H/64, W/64)."""
        for out in self.stage_maps(x):
            x = out
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """What the heads make of the last map; with ``pre_logits`` what they are given."""
        x = self.head_drop(self.global_pool(x))
        if pre_logits:
            return x
        if not self.distillation:
            return self.head(x)
        both = self.head(x), self.head_dist(x)
        return both if self.training and self.distilled_training else (both[0] + both[1]) / 2

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of some stages, as timm asks for them.

        Args:
            x: images (B, in_chans, H, W).
            indices: which stages, from 0, or how many of the last; None for all.
            norm: without effect; there is no final norm.
            stop_early: leave out the stages after the last one asked for.
            output_fmt: ``"NCHW"``, the only one.
            intermediates_only: leave out the last map.

        Returns:
            the maps, after the last map computed unless that is left out.
        """
        if output_fmt != "NCHW":
            raise ConfigError(f"output_fmt={output_fmt!r} is not known here; maps are 'NCHW'.")
        wanted, last = feature_take_indices(len(self.stages), indices)
        maps = []
        for index, out in enumerate(self.stage_maps(x)):
            x = out
            if index in wanted:
                maps.append(x)
            if stop_early and index == last:
                break
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Takes out what :meth:`forward_intermediates` does not need; returns the stages from 0."""
        wanted, last = feature_take_indices(len(self.stages), indices)
        for index in range(last + 1, len(self.stages)):
            delattr(self, f"blocks{index + 1}")
        self.dims = self.dims[: last + 1]
        if prune_head:
            self.reset_classifier(0, "")
        return wanted
