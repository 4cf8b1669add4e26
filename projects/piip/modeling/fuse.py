"""Folding layers that follow each other into one, for inference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.modeling.backbone.fpn import FPN
from timm.layers import LayerScale
from timm.models.convnext import ConvNeXtBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import ConfigError
from ..layers.cpu_conv import PointwiseConv2d, batch_channels_last
from ..layers.cpu_half import Float32Conv2d, Float32Linear, lacks_instructions
from ..layers.deform_attn import DeformAttn
from ..layers.winograd import WinogradConv2d
from .interaction import Injector
from .lsnet.blocks import ConvNorm, FusedLSConv, LargeKernelPerception, LSConv, RepDW
from .lsnet.body import LSNetBody
from .lsnet.classifier import Head
from .meta_arch.semantic_segmentor import SemanticSegmentor
from .necks import ChannelMapper, Doubling, SimplePyramidNeck
from .sem_seg import UPerNetHead

__all__ = ["fuse"]


def fuse(module: nn.Module) -> nn.Module:
    """A copy of a model that computes the same, but for rounding, with fewer layers.

    * LSNet: every convolution takes in its BatchNorm, a re-parameterisable depthwise convolution becomes one 3x3
      convolution, and a classifier's linear layer takes in the norm before it. Weights that depend on the image can
      take in no norm: the norms of LS convolution are computed with its aggregation, by :func:`piip.layers.normed_ska`.
    * The simple feature pyramid: the transposed convolution that ends a level and the 1x1 convolution with which an FPN
      (or what DINO and UPerNet have instead) begins become one, with a quarter of their computation or less.
    * Transformers, ConvNeXt and interactions: the layers before a residual connection take in its scale. In
      deformable attention the two products of the queries become one, and all from there to the sampled values one
      operator, without gradients.
    * On a CPU, wide 3x3 convolutions of any model become :class:`piip.layers.WinogradConv2d`, which takes four times
      their memory more, and the 1x1 convolutions of LSNet :class:`piip.layers.PointwiseConv2d`. A model for a GPU is
      fused there.
    * On a CPU without instructions for the half precision of a model, linear layers and convolutions multiply in
      float32; parameters and outputs stay as they are.

    The copy is for inference, does not call all hooks of layers inside, and has other names in its state dict, which
    depend on the device: load weights before, and train the original.

    Source: RepVGG (arXiv:2101.03697), Sec. 3.3, for the convolutions; published sizes and speeds of LSNet are those of
    fused models.

    Args:
        module: a backbone, a classifier or a whole detector, in evaluation mode.

    Raises:
        ConfigError: in training mode, or when there is nothing to fold.
    """
    if module.training:
        raise ConfigError(f"a {type(module).__name__} in training mode cannot be fused; call its eval() first.")
    with torch.no_grad():
        fused = copy.deepcopy(module)
        parts = list(fused.modules())
        changed = [fold(part) for part in parts for kinds, fold in _FOLDED.items() if isinstance(part, kinds)]
        swaps = {part: _REPLACED[type(part)](part) for part in fused.modules() if type(part) in _REPLACED}
        fused = _swap(fused, swaps)
        chosen = {part: next((kind for kind in _ON_CPU if kind.suits(part)), None) for part in fused.modules()}
        fast = {part: _then_rest(kind(part), part) for part, kind in chosen.items() if kind}
        if not any(changed) and not swaps and not fast:
            raise ConfigError(
                f"the {type(module).__name__} has no parts left to fuse; it has none of LSNet, PIIP, vision "
                "transformers or ConvNeXt, and nothing that a CPU computes faster in another way, or it has been fused "
                "before."
            )
        return _swap(fused, fast).requires_grad_(False).eval()


def _fuse_conv_norm(unit: ConvNorm) -> nn.Conv2d:
    return _pointwise(fuse_conv_bn_eval(unit.c, unit.bn))


def _pointwise(conv: nn.Conv2d) -> nn.Conv2d:
    plain = type(conv) is nn.Conv2d and conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1
    plain = plain and conv.weight.is_cpu and not lacks_instructions(conv.weight.dtype)
    return PointwiseConv2d(conv) if plain else conv


def _order_memory(body: LSNetBody) -> bool:
    body.patch_embed.register_forward_pre_hook(batch_channels_last)
    return False


def _fuse_perception(perception: LargeKernelPerception) -> bool:
    last = perception.cv4
    perception.cv4 = _pointwise(last)
    return perception.cv4 is not last


def _fuse_rep_dw(mixer: RepDW) -> nn.Conv2d:
    large, small = _fuse_conv_norm(mixer.conv), _fuse_conv_norm(mixer.conv1)
    centre = small.weight + 1  # of the input itself
    large.weight += F.pad(centre, (1, 1, 1, 1))
    large.bias += small.bias
    return large


def _fuse_head(head: Head) -> nn.Linear:
    norm, linear = head.bn, head.l
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    fused = copy.deepcopy(linear)
    fused.weight.copy_(linear.weight * scale)
    fused.bias.copy_(linear.bias + linear.weight @ (norm.bias - norm.running_mean * scale))
    return fused


_REPLACED = {ConvNorm: _fuse_conv_norm, RepDW: _fuse_rep_dw, LSConv: FusedLSConv, Head: _fuse_head}


def _scale(layer: nn.Module, gamma: Tensor) -> None:
    """Scales the outputs of a linear layer or a convolution."""
    layer.weight.mul_(gamma.view(-1, *[1] * (layer.weight.dim() - 1)))
    if layer.bias is not None:
        layer.bias.mul_(gamma)


def _fold_block(block: Block) -> bool:
    scales = {"ls1": block.attn.proj, "ls2": block.mlp.fc2}
    scales = {name: layer for name, layer in scales.items() if isinstance(getattr(block, name), LayerScale)}
    for name, layer in scales.items():
        _scale(layer, getattr(block, name).gamma)
        setattr(block, name, nn.Identity())
    return bool(scales)


def _fold_convnext_block(block: ConvNeXtBlock) -> bool:
    if block.gamma is None:
        return False
    _scale(block.mlp.fc2, block.gamma)
    block.gamma = None
    return True


def _fold_injector(injector: Injector) -> bool:
    if injector.gamma_attn is None:
        return False
    attn = injector.attn
    _scale(attn.output_proj if hasattr(attn, "output_proj") else attn.proj, injector.gamma_attn)
    injector.gamma_attn = None
    if injector.ffn is not None:
        _scale(injector.ffn.fc2, injector.gamma_ffn)
        injector.gamma_ffn = None
    return True


def _join_projections(attn: DeformAttn) -> bool:
    if attn.joined is not None:
        return False
    attn.join_projections()
    return True


def _fold_laterals(part: nn.Module) -> bool:
    """The 1x1 convolutions of what is above a simple feature pyramid go into the levels below them."""
    backbone = part.backbone if isinstance(part, SemanticSegmentor) else part.bottom_up
    neck = getattr(backbone, "neck", None)
    found = {}
    if isinstance(neck, SimplePyramidNeck):
        found = {
            name: conv
            for name, conv in _laterals(part)
            if name in neck.levels and isinstance(neck.levels[name], nn.Sequential)
        }
    for name, conv in found.items():
        neck.replace_last(name, _then(neck.levels[name][-1], conv), conv.out_channels)
    _swap(part, {conv: _Rest(conv) for conv in found.values()})
    return bool(found)


def _laterals(part: nn.Module) -> Iterator[tuple[str, Conv2d]]:
    """The names of those maps that go through a 1x1 convolution and nowhere else, with these convolutions."""
    if isinstance(part, SemanticSegmentor):
        head = part.sem_seg_head
        pairs = zip(head.in_features, head.laterals, strict=False) if isinstance(head, UPerNetHead) else ()
        elsewhere: set[str | None] = set()
    elif isinstance(part, ChannelMapper):
        pairs = zip(part.in_features, part.lateral, strict=True)
        elsewhere = {part.in_features[-1]} if part.extra else set()
    else:
        pairs = zip(part.in_features, reversed(part.lateral_convs), strict=True)
        elsewhere = {getattr(part.top_block, "in_feature", None)}
    return ((name, conv) for name, conv in pairs if isinstance(conv, Conv2d) and name not in elsewhere)


def _then(doubling: Doubling, conv: Conv2d) -> Doubling:
    """A transposed convolution and a 1x1 convolution as one."""
    matrix, bias = conv.weight.flatten(1).double(), doubling.bias.double()
    both = Doubling(doubling.in_channels, conv.out_channels).to(doubling.weight)
    both.weight.copy_(torch.einsum("imyx,om->ioyx", doubling.weight.double(), matrix))
    both.bias.copy_(matrix @ bias if conv.bias is None else matrix @ bias + conv.bias)
    return both.eval()


class _Rest(nn.Module):
    """What a convolution of Detectron2 does after the convolution."""

    def __init__(self, conv: Conv2d) -> None:
        super().__init__()
        self.norm, self.activation = conv.norm, conv.activation

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)


def _then_rest(fast: nn.Module, conv: nn.Conv2d) -> nn.Module:
    rest = isinstance(conv, Conv2d) and (conv.norm is not None or conv.activation is not None)
    return nn.Sequential(fast, _Rest(conv)) if rest else fast


def _swap(whole: nn.Module, swaps: dict[nn.Module, nn.Module]) -> nn.Module:
    """Puts layers in the place of others, wherever a model has these."""
    for module in list(whole.modules()):
        for name, child in module._modules.items():
            if child in swaps:
                setattr(module, name, swaps[child])
        for name, value in vars(module).items():  # Detectron2's FPN has its layers in lists besides
            if isinstance(value, list) and any(isinstance(item, nn.Module) and item in swaps for item in value):
                setattr(module, name, [swaps.get(item, item) for item in value])
    return swaps.get(whole, whole)


# What takes the place of layers that it suits; the first one does.
_ON_CPU = (WinogradConv2d, Float32Linear, Float32Conv2d)

_FOLDED: dict[type | tuple[type, ...], Callable[[nn.Module], bool]] = {
    Block: _fold_block,
    ConvNeXtBlock: _fold_convnext_block,
    Injector: _fold_injector,
    LSNetBody: _order_memory,
    DeformAttn: _join_projections,
    LargeKernelPerception: _fuse_perception,
    (FPN, ChannelMapper, SemanticSegmentor): _fold_laterals,
}
