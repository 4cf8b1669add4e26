"""Any network of timm that works block by block, as a branch by its name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

from ...errors import ConfigError, did_you_mean
from .base import BranchState, check_rate
from .staged import StagedBranch

__all__ = ["TimmBranch"]

# Where networks keep their stages, or their blocks where they have no stages.
_STAGES = ("stages", "layers", "blocks")
_NUMBERED_STAGES = ("layer{}", "s{}")

# How timm's classes are told to accept inputs of any size.
_ANY_SIZE = ({"strict_img_size": False}, {"dynamic_img_size": True}, {})

_OURS = ("pretrained", "checkpoint_path", "num_classes", "in_chans", "features_only", "scriptable", "exportable")

_WHAT_WORKS = (
    "plain vision transformers (vit_*, deit*, eva*, SigLIP, DINOv2, DINOv3) and networks that are a chain of stages "
    "of feature maps (convnext*, swin*, resnet*, regnet*, efficientnet*, maxvit*) work; BEiT does as BEiTBranch"
)


class TimmBranch(StagedBranch):
    """A timm network without its final norm and head.

    Plain transformers run one block at a time, on tokens; class and register tokens travel along as the state's
    prefix, and positions (learned or rotary) are resampled to the grid at hand. Networks in stages run one block or
    downsampling layer at a time, or one whole stage where its parts do not simply follow each other. Which of these
    holds is found out when the branch is made, from one pass of shapes without numbers.

    Constructing downloads nothing. The state dict has timm's names with another beginning, see :meth:`timm_name`.

    Args:
        model_name: name of the network, with or without a tag: ``"vit_small_patch16_dinov3"``,
            ``"convnext_tiny.fb_in1k"``.
        drop_path_rate: stochastic depth rate, distributed over the blocks as the network does it.
        weights: where the pretrained weights are, see :class:`~.base.Branch`; ``"default"`` is timm's own for the name,
            None is none.
        use_act_checkpoint: recompute block activations in the backward pass.
        options: what else timm's constructor of the network takes, such as ``patch_size=16`` or ``img_size=448``, the
            size that learned positions and windows are made for. Other sizes can be run, but for a few networks with
            fixed windows (MaxViT), which take multiples of theirs.

    Shape:
        embed: (B, 3, H, W) -> tokens (B, h*w, C) with h = H // embed_stride, w = W // embed_stride; trailing pixels
        that make no whole patch are dropped.

    Raises:
        ConfigError: for an unknown name or option, or a network that cannot be run block by block; in the forward pass
            for an image of a size that the network does not take.
    """

    def __init__(
        self,
        model_name: str,
        *,
        drop_path_rate: float = 0.0,
        weights: str | None = "default",
        use_act_checkpoint: bool = False,
        **options: object,
    ) -> None:
        super().__init__()
        check_rate("drop_path_rate", drop_path_rate)
        self.model_name = model_name
        self._options = {"drop_path_rate": drop_path_rate, "options": options}
        model = self.make_model()
        self.weights = f"timm://{model_name}" if weights == "default" else weights
        self.use_act_checkpoint = use_act_checkpoint
        self.step_names, maps, before = _split(model, model_name)
        steps = [model.get_submodule(name) for name in self.step_names]
        self.on_tokens = maps[0].dim() == 3
        pixels = _native_size(model)
        if self.on_tokens:
            self.num_prefix_tokens = model.num_prefix_tokens
            sides = [math.isqrt(x.shape[1] - self.num_prefix_tokens) for x in maps]
        else:
            self.channels_last = all(x.shape[1] == x.shape[2] for x in maps)
            sides = [x.shape[2] for x in maps]
        self.embed_stride, *self.strides = (_stride(pixels, side) for side in sides)
        self.out_channels = [x.shape[-1 if self.on_tokens or self.channels_last else 1] for x in maps[1:]]
        # Networks with windows of a fixed size, say.
        self.refuses_sizes = not self.on_tokens and not _runs(model, (pixels + 192, pixels + 64))
        self.blocks = nn.ModuleList(steps)
        self.stem = _strip(model, self.step_names, before)
        if not _runs(self.stem, result=maps[0].shape):
            raise _unsuitable(model, model_name)
        self.train()

    def make_model(self) -> nn.Module:
        """The whole network that this branch is a part of, with random weights."""
        return _create(self.model_name, **self._options)

    def timm_name(self, name: str) -> str:
        """What timm calls an entry of this branch's state dict."""
        kind, rest = name.split(".", 1)
        if kind != "blocks":
            return rest
        index, rest = rest.split(".", 1)
        return f"{self.step_names[int(index)]}.{rest}"

    def embed(self, image: Tensor) -> BranchState:
        height, width = (side // self.embed_stride * self.embed_stride for side in image.shape[2:])
        image = image[:, :, :height, :width]
        if not self.on_tokens:
            return super().embed(image)
        if not image.numel():
            raise ConfigError(
                f"the image is smaller than one patch of {self.embed_stride} pixels of {self.model_name}; "
                "use a larger input or resolution."
            )
        return self._split_prefix(
            self.stem.forward_features(image), (height // self.embed_stride, width // self.embed_stride)
        )

    def embed_map(self, image: Tensor) -> Tensor:
        return self.stem.forward_features(image)

    def run(self, state: BranchState, start: int, stop: int) -> BranchState:
        if not self.on_tokens:
            return super().run(state, start, stop)
        x = state.tokens if state.prefix is None else torch.cat([state.prefix, state.tokens], dim=1)
        rope = getattr(self.stem, "rope", None)
        context = () if rope is None else (rope.get_embed(shape=state.grid_size),)
        x = self.run_steps(x, start, stop, *context)
        return self._split_prefix(x, state.grid_size)

    def run_step(self, x: Tensor, index: int, rope: Tensor | None = None) -> Tensor:
        block = self.blocks[index]
        if rope is not None:
            # Learned rotary positions (blocks, heads, N, C) are every block's own.
            return block(x, rope=rope[index] if rope.dim() == 4 else rope)
        if not self.refuses_sizes:
            return block(x)
        try:
            return block(x)
        except (AssertionError, RuntimeError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            raise ConfigError(
                f"block {index} of {self.model_name} cannot run on a map of shape {tuple(x.shape)} ({error}); the "
                "network is made for some sizes only: set img_size to the branch's, or choose another resolution."
            ) from error

    def block_modules(self) -> list[nn.Module]:
        return list(self.blocks)

    def _split_prefix(self, x: Tensor, grid: tuple[int, int]) -> BranchState:
        count = self.num_prefix_tokens
        return BranchState(x[:, count:], grid, x[:, :count] if count else None)

    def train(self, mode: bool = True) -> TimmBranch:
        super().train(mode)
        if rope := getattr(self.stem, "rope", None):
            # DINOv3 stretches its rotary positions at random in training; all runs of a branch must see the same.
            rope.eval()
        return self

    def layer_id(self, name: str) -> int | None:
        if not self.on_tokens:
            return None
        kind, index, *_ = name.split(".")
        return int(index) + 1 if kind == "blocks" else 0


class _Nothing(nn.Module):
    """Stands where blocks were."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return x


class _Features(nn.Module):
    """A network as a module that stops before its head."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model.forward_features(image)


def _create(model_name: str, drop_path_rate: float, options: dict[str, object]) -> nn.Module:
    """The network with random weights, able to run at other sizes than its own where its class can."""
    known = [*timm.list_models(), *timm.list_pretrained()]
    if model_name not in known:
        raise ConfigError(
            f"timm {timm.__version__} has no model {model_name!r}; timm.list_models() lists all."
            f"{did_you_mean(model_name, known)}"
        )
    for name in _OURS:
        if name in options:
            raise ConfigError(f"{name}={options[name]!r} is not for a branch to choose; leave it out.")
    # Not every network knows stochastic depth, but where one does it may have another default.
    rates = [{"drop_path_rate": drop_path_rate}, {}] if drop_path_rate == 0 else [{"drop_path_rate": drop_path_rate}]
    for rate in rates:
        for size in _ANY_SIZE:
            try:
                return timm.create_model(model_name, num_classes=0, **rate, **{**size, **options})
            except TypeError as error:
                refusal = error
            except (AssertionError, RuntimeError, ValueError) as error:
                raise ConfigError(f"timm cannot build {model_name} with {options}: {error}") from error
    raise ConfigError(
        f"timm cannot build {model_name} with {rates[0] | options}: {refusal}; take that option out."
    ) from refusal


def _stride(pixels: int, side: int) -> int:
    """Of an image with so many pixels per side and a map with so many positions, which may have been rounded."""
    power = 2 ** round(math.log2(pixels / side))
    return power if side in (pixels // power, math.ceil(pixels / power)) else pixels // side


def _native_size(model: nn.Module) -> int:
    """Pixels per side that the network is made for."""
    embed = getattr(model, "patch_embed", None)
    sides = getattr(embed, "img_size", None) or model.pretrained_cfg["input_size"][1:]
    patches = getattr(embed, "patch_size", (1, 1))
    if len(set(sides)) > 1 or len(set(patches)) > 1:
        raise ConfigError(f"img_size={tuple(sides)} and patches of {tuple(patches)} must be square; give one number.")
    return sides[0] // patches[0] * patches[0]


def _split(model: nn.Module, model_name: str) -> tuple[list[str], list[Tensor], set[str]]:
    """Finds the steps of a network: the smallest modules that demonstrably follow each other.

    Returns:
        the names of the steps; what goes into the first one and comes out of each (shapes without numbers); the names
        of the network's parts that run before the first one.

    Raises:
        ConfigError: when there are none.
    """
    on_tokens = isinstance(model, VisionTransformer | Eva)
    cause = None
    for names, last in _candidates(model):
        try:
            maps, before = _trace(model, names, last)
        except ConfigError:
            raise
        except Exception as error:  # a network may do anything
            cause = error
            continue
        if maps and {x.dim() for x in maps} == {3 if on_tokens else 4}:
            return names, maps, before
    raise _unsuitable(model, model_name) from cause


def _unsuitable(model: nn.Module, model_name: str) -> ConfigError:
    return ConfigError(f"{model_name} ({type(model).__name__}) cannot be run block by block; {_WHAT_WORKS}.")


def _candidates(model: nn.Module) -> Iterator[tuple[list[str], str]]:
    """Modules that may be the steps of a network, and the one that ends with the last of them; the smallest first."""
    stages = [
        f"{holder}.{child}"
        for holder in _STAGES
        if isinstance(getattr(model, holder, None), nn.Sequential | nn.ModuleList)
        for child, _ in getattr(model, holder).named_children()
    ]
    for pattern in _NUMBERED_STAGES:
        stages = stages or [name for i in range(1, 10) if hasattr(model, name := pattern.format(i))]
    if stages:
        yield [step for name in stages for step in _parts(model.get_submodule(name), name)], stages[-1]
        yield stages, stages[-1]


def _parts(stage: nn.Module, name: str) -> list[str]:
    """What a stage may consist of: its blocks, and what is done before or after them."""
    if isinstance(stage, nn.Sequential):
        return [f"{name}.{child}" for child, _ in stage.named_children()]
    if not isinstance(getattr(stage, "blocks", None), nn.Sequential | nn.ModuleList):
        return [name]
    parts = []
    for child, module in stage.named_children():
        if child == "blocks":
            parts += [f"{name}.blocks.{block}" for block, _ in module.named_children()]
        elif not isinstance(module, nn.Identity):
            parts.append(f"{name}.{child}")
    return parts


def _trace(model: nn.Module, names: Sequence[str], last: str) -> tuple[list[Tensor], set[str]]:
    """Runs a network without numbers and looks whether every step is handed exactly what the one before returned.

    Args:
        last: name of the module that ends with the last step, and must return what that one does.

    Returns:
        what goes into the first step and comes out of each, and the names of the parts that were called before; no
        tensors when the steps do not follow each other.
    """
    steps = {model.get_submodule(name): i for i, name in enumerate(names)}
    maps: list[Tensor] = []
    before: set[str] = set()
    broken = False

    def on_step(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        nonlocal broken
        extra = [name for name, value in kwargs.items() if value is not None and value is not False and name != "rope"]
        if not maps:
            maps.append(args[0])
        broken |= steps[module] != len(maps) - 1 or args[0] is not maps[-1] or len(args) > 1 or bool(extra)
        maps.append(output)

    def on_last(module: nn.Module, args: tuple, output: Tensor) -> None:
        nonlocal broken
        broken |= output is not maps[-1]

    hooks = [step.register_forward_hook(on_step, with_kwargs=True) for step in steps]
    hooks.append(model.get_submodule(last).register_forward_hook(on_last))
    for name, child in model.named_children():
        hooks.append(
            child.register_forward_pre_hook(lambda module, args, name=name: None if maps else before.add(name))
        )
    try:
        _shapes_only(model)
    finally:
        for hook in hooks:
            hook.remove()
    complete = len(maps) == len(names) + 1 and not broken and all(isinstance(x, Tensor) for x in maps)
    return (maps if complete else []), before


def _runs(model: nn.Module, size: Sequence[int] | None = None, result: torch.Size | None = None) -> bool:
    """Whether a network runs on images of a size, and has a result of that shape."""
    try:
        shape = _shapes_only(model, size).shape
    except Exception:  # a network may do anything
        return False
    return result is None or shape == result


def _shapes_only(model: nn.Module, size: Sequence[int] | None = None) -> Tensor:
    """One forward pass over an image of a size, else of the network's own, on the meta device."""
    features = _Features(model).eval()
    state = {**dict(features.named_parameters()), **dict(features.named_buffers())}
    image = torch.empty(1, 3, *(size or (_native_size(model),) * 2), device="meta")
    try:
        with torch.no_grad():
            return functional_call(features, {name: x.to("meta") for name, x in state.items()}, (image,))
    finally:
        features.train()


def _strip(model: nn.Module, step_names: Sequence[str], before: set[str]) -> nn.Module:
    """Leaves of a network what comes before its first step, by the names it had."""
    holders = {name.split(".")[0] for name in step_names}
    for name, child in list(model.named_children()):
        if name in holders:
            nothing = [_Nothing()]
            setattr(
                model, name, nn.ModuleList(nothing) if isinstance(child, nn.ModuleList) else nn.Sequential(*nothing)
            )
        elif name not in before and name != "rope":
            setattr(model, name, nn.Identity())
    return model
