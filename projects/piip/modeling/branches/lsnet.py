"""LSNet as a branch: a stem and four stages of changing width and grid."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..lsnet.body import STRIDES, LSNetBody
from .staged import StagedBranch

__all__ = ["LSNetBranch"]

_STEM_STRIDE = 2


class LSNetBranch(LSNetBody, StagedBranch):
    """LSNet without a head, by the names of the released weights.

    What counts as one block of the branch: the second and the third convolution of the stem (so that there are maps of
    stride 4 and 8, also where the first stage is empty), the downsampling before each stage but the first, and every
    block of a stage. LSNet-T has 25, S 26 and B 33. There is no layer-wise learning-rate decay.

    Args:
        dims: widths of the four stages; ``L(LSNetBranch)(**VARIANTS["t"])`` is the config of LSNet-T.
        depths: their numbers of blocks.
        num_heads: heads of the attention.
        resolution: side of the grid that the tables of attention biases are for.
        bias_resize: how the biases are fitted to the grid at hand: ``"offsets"``, by true offsets in two dimensions,
            or ``"matrix"`` as in the released detectors.
        drop_path_rate: stochastic depth rate of the last block; it grows linearly from 0 in the first.
        batch_norm: what of BatchNorm is trained, see :class:`~piip.modeling.lsnet.LSNet`.
        weights: where the pretrained weights are, see :class:`~.base.Branch`.
        use_act_checkpoint: recompute block activations in the backward pass.

    Shape:
        embed: (B, 3, H, W) -> tokens (B, h*w, dims[0] / 4) with h = H / 2, w = W / 2, rounded up, as are all sizes.
        After blocks 0 and 1 the width is dims[0] / 2 and dims[0], the stride 4 and 8.

    Raises:
        ConfigError: for sizes that do not fit together.
    """

    rounds_up = True

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        *,
        num_heads: int = 4,
        resolution: int = 14,
        bias_resize: str = "offsets",
        drop_path_rate: float = 0.0,
        batch_norm: str = "affine",
        weights: str | None = None,
        use_act_checkpoint: bool = False,
    ) -> None:
        super().__init__(
            dims,
            depths,
            num_heads=num_heads,
            resolution=resolution,
            bias_resize=bias_resize,
            drop_path_rate=drop_path_rate,
            batch_norm=batch_norm,
        )
        # The layers of every block.
        self._paths: list[list[str]] = [["patch_embed.2", "patch_embed.3"], ["patch_embed.4"]]
        self.embed_stride = _STEM_STRIDE
        self.out_channels, self.strides = [self.dims[0] // 2, self.dims[0]], [4, 8]
        for stage, (dim, layers) in enumerate(zip(self.dims, self.stages, strict=True)):
            paths = [[f"blocks{stage + 1}.{i}"] for i in range(len(layers))]
            if stage:
                paths[:2] = [paths[0] + paths[1]]
            self._paths += paths
            self.out_channels += [dim] * len(paths)
            self.strides += [STRIDES[stage]] * len(paths)
        self.weights = weights
        self.set_grad_checkpointing(use_act_checkpoint)

    def embed_map(self, image: Tensor) -> Tensor:
        for layer in self.patch_embed[:2]:
            image = layer(image)
        return image

    def run_step(self, x: Tensor, index: int) -> Tensor:
        for path in self._paths[index]:
            x = self.get_submodule(path)(x)
        return x

    def block_modules(self) -> list[nn.Module]:
        return [self.get_submodule(path) for paths in self._paths for path in paths]
