"""Building our modules from the class names and arguments of the released configs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from ..errors import ConfigError, did_you_mean
from ..modeling.branches import (
    BEiTBranch,
    Branch,
    ConvNeXtBranch,
    InternViTBranch,
    UniPerceiverBranch,
    ViTBranch,
)
from ..modeling.piip import PIIP
from ..modeling.piip_classifier import PIIPClassifier
from ..modeling.single_branch import SingleBranch
from .arguments import (
    Arguments,
    flag,
    integer,
    integers,
    mapping,
    one_of,
    per_block,
    positive,
    ranges,
    rate,
    scale,
    text,
)

__all__ = ["build_from_official"]

_PIIP_CLASSES = {"PIIPTwoBranch": 2, "PIIPThreeBranch": 3, "PIIPFourBranch": 4}

# Arguments that choose an implementation or say where files are, and change no number here.
_WITHOUT_EFFECT = {
    "type", "pretrained", "pretrain_patch_size", "with_fpn", "with_cp", "output_dtype", "cal_flops", "out_indices",
    "use_flash_attn", "layerscale_force_fp32", "freeze_vit", "init_cfg", "norm_cfg",
}  # fmt: skip

_ATTENTIONS = {"deform": "deform", "normal": "dense"}

# How MLPs are named, and the activation that they have.
_MLPS = dict.fromkeys(("normal", "mlp", "naive_mlp", "vanilla_mlp"), "gelu") | {"fused_mlp": "gelu_tanh"}

# Depths and first width of the ConvNeXt sizes; every stage doubles the width.
_CONVNEXTS = {
    "tiny": ((3, 3, 9, 3), 96),
    "small": ((3, 3, 27, 3), 96),
    "base": ((3, 3, 27, 3), 128),
    "large": ((3, 3, 27, 3), 192),
}

# Arguments of the released classes that no released config sets to anything else.
_FIXED = {"drop_rate": 0, "attn_drop_rate": 0, "in_chans": 3, "qk_scale": None}


# The projects of the released code that define the PIIP classes, as their files' paths begin.
_TASKS = ("mmdetection", "mmsegmentation", "classification")


def build_from_official(class_name: str, args: Mapping[str, Any]) -> nn.Module:
    """Ports a released-style config: our module for a released class and its constructor arguments.

    The released four-branch class builds its branch 4 from the settings of branch 3. Here it is built from its own, and
    :func:`load_official` exchanges it where a checkpoint holds the other one.

    The family of a branch follows from its ``pretrained`` path, as in the released code: "deit", then "beit",
    "perceiver" and "convnext" are looked for in it, and a path with none of them means the InternViT kind.

    Args:
        class_name: ``PIIPTwoBranch``, ``PIIPThreeBranch``, ``PIIPFourBranch``, or a single-branch baseline:
            ``vit_models`` (DeiT kind), ``InternViT6B``, ``ConvNextHFWrapper``. The released code has each PIIP class
            once per task; the path of its file before the name tells which one is meant, as in
            ``classification/piip_3branch.py PIIPThreeBranch``. Without a path, it is the one for detection.
        args: constructor arguments as in the released config.

    Returns:
        a PIIP, PIIPClassifier or SingleBranch, ready for :func:`load_official`.

    Raises:
        ConfigError: for a class, an argument or a branch kind that is not known, and for an argument that is missing
            or has a value that cannot be used.
    """
    path, _, name = class_name.rpartition(" ") if isinstance(class_name, str) else ("", "", class_name)
    known, task = [*_PIIP_CLASSES, *_SINGLE_CLASSES], path.partition("/")[0]
    if name not in known:
        hint = did_you_mean(str(name), known)
        raise ConfigError(f"released class {class_name!r} is unknown; known are {known}.{hint}")
    if path and task not in _TASKS:
        raise ConfigError(
            f"released class {class_name!r} is in no known project; its path must begin with one of {list(_TASKS)}."
        )
    args = Arguments(class_name, args)
    if name in _SINGLE_CLASSES:
        return SingleBranch(_branch(args, _SINGLE_CLASSES[name]))
    settings = [
        Arguments(f"{args.owner}.{branch}", args.take(branch, check=mapping))
        for branch in (f"branch{k}" for k in range(_PIIP_CLASSES[name], 0, -1))  # finest first
    ]
    if task == "classification":
        return _classifier(args, settings)
    return _piip(args, settings, fixed_size=task == "mmsegmentation")


def _piip(args: Arguments, settings: list[Arguments], fixed_size: bool) -> PIIP:
    resolutions = _resolutions(settings, fixed_size)
    groups = [s.take("interaction_indexes", check=ranges) for s in settings]
    interaction = _interaction(args)
    interaction["with_proj"] = args.take("interaction_proj", check=flag, default=True)
    interaction["with_norm"] = args.take("norm_layer", check=_norm_or_none, default="LayerNorm") != "none"
    outputs = ("c3", "c4", "c5") if args.take("is_dino", check=flag, default=False) else ("c2", "c3", "c4", "c5")
    simple = args.take("with_simple_fpn", check=flag, default=True)
    out_steps = args.take("out_interaction_indexes", check=integers, default=[])
    if simple and out_steps:
        raise args.wrong("out_interaction_indexes", out_steps, "set with_simple_fpn=False, or leave it out")
    if not simple and not out_steps:
        raise args.wrong("with_simple_fpn", simple, "give out_interaction_indexes too, or leave it out")
    args.finish(_WITHOUT_EFFECT, _FIXED)
    return _assembled(
        PIIP, args, [_branch(s) for s in settings], resolutions=resolutions, interaction_indexes=groups,
        interaction=interaction, out_interaction_indexes=None if simple else out_steps, out_features=outputs,
    )  # fmt: skip


def _classifier(args: Arguments, settings: list[Arguments]) -> PIIPClassifier:
    kind = args.take("model_type", check=one_of(_CLASSIFIER_KINDS), default="deit")
    kinds = [s.take("model_type", check=one_of(_CLASSIFIER_KINDS), default=kind) for s in settings]
    resolutions = _resolutions(settings, fixed_size=True)
    groups = [s.take("interaction_indexes", check=ranges) for s in settings]
    interaction = _interaction(args)
    num_classes = args.take("num_classes", check=integer, default=1000)
    separate = args.take("separate_head", check=flag, default=False)
    args.finish(_WITHOUT_EFFECT, _FIXED)
    branches = [_branch(s, _CLASSIFIER_KINDS[kind]) for s, kind in zip(settings, kinds, strict=True)]
    return _assembled(
        PIIPClassifier, args, branches, resolutions=resolutions, interaction_indexes=groups, interaction=interaction,
        num_classes=num_classes, head="separate" if separate else "merged",
    )  # fmt: skip


def _resolutions(settings: list[Arguments], fixed_size: bool) -> list[int]:
    """The branches' resolutions; classes for images of one size also make the position embeddings for them."""
    resolutions = [s.take("real_size", "img_size", check=integer) for s in settings]
    if fixed_size:
        for s, resolution in zip(settings, resolutions, strict=True):
            s.take("pretrain_img_size", check=integer, default=224)
            s.put("pretrain_img_size", resolution)
    return resolutions


def _interaction(args: Arguments) -> dict[str, Any]:
    ffn_ratio = args.take("cffn_ratio", check=positive, default=0.25)
    return {
        "attention": _ATTENTIONS[args.take("interact_attn_type", check=one_of(_ATTENTIONS), default="normal")],
        "num_heads": args.take("deform_num_heads", check=integer, default=6),
        "num_points": args.take("n_points", check=integer, default=4),
        "value_ratio": args.take("deform_ratio", check=positive, default=1.0),
        "ffn_ratio": ffn_ratio if args.take("with_cffn", check=flag, default=False) else 0.0,
        "drop_path_rate": args.take("interaction_drop_path_rate", check=rate, default=0.3),
    }


def _assembled(make: Callable[..., Any], args: Arguments, branches: list[Branch], **options: Any) -> Any:
    args.owner += f" (its branch{len(branches)} is branch 0 here)"
    return args.build(make, branches=branches, **options)


def _branch(args: Arguments, kind: Callable[[Arguments], Branch] | None = None) -> Branch:
    """The released code tells the kinds apart by the path of the pretrained weights, in this order."""
    pretrained = args.take("pretrained", check=text, default=None) or ""
    args.owner += f" with pretrained={pretrained!r}"
    kind = kind or next((build for part, build in _KINDS.items() if part in pretrained), _internvit)
    return kind(args)


def _deit(args: Arguments, class_token: bool = False) -> ViTBranch:
    options = {
        **_plain(args),
        **_vit(args),
        # Without flash attention the released class pads after the projection.
        "pad_after_qkv": not args.take("use_flash_attn", check=flag, default=False),
        "layer_scale_init": args.take("init_scale", check=positive, default=1e-4),
        "class_token": class_token,
    }
    return _finished(ViTBranch, args, options)


def _deit_with_token(args: Arguments) -> ViTBranch:
    return _deit(args, class_token=args.take("use_cls_token", check=flag, default=False))


def _augreg(args: Arguments) -> InternViTBranch:
    """The InternViT kind as the classifiers have it: no layer scale, constant stochastic depth."""
    args.take("init_scale", check=scale, default=None)
    args.put("init_values", 0)
    class_token = args.take("use_cls_token", check=flag, default=False)
    options = _internvit_options(args, "LayerNorm", qkv_bias=True) | {"class_token": class_token}
    options["drop_path_rate"] = [options["drop_path_rate"]] * options["depth"]
    return _finished(InternViTBranch, args, options)


def _internvit(args: Arguments) -> InternViTBranch:
    return _finished(InternViTBranch, args, _internvit_options(args, "RMSNorm", qkv_bias=False))


def _internvit_options(args: Arguments, norm: str, qkv_bias: bool) -> dict[str, Any]:
    norm = "RMS" if "rms" in args.take("norm_layer_type", check=_norm_type, default=norm).lower() else "LN"
    return {
        **_plain(args),
        **_vit(args, qkv_bias),
        "norm": norm,
        "qk_norm": args.take("qk_normalization", check=flag, default=norm == "RMS"),
        "layer_scale_init": args.take("init_values", check=scale, default=0.1) or None,
    }


def _beit(args: Arguments) -> BEiTBranch:
    # False is what the released class has where a config does not say.
    if not args.take("qkv_bias", check=flag, default=False):
        raise args.wrong("qkv_bias", False, "released models have True")
    options = {**_plain(args), "layer_scale_init": args.take("init_values", check=positive, default=1e-6)}
    fixed = {"use_abs_pos_emb": False, "use_rel_pos_bias": True, "use_shared_rel_pos_bias": False}
    return _finished(BEiTBranch, args, options, fixed)


def _uniperceiver(args: Arguments) -> UniPerceiverBranch:
    options = _plain(args, heads=("num_heads", "num_attention_heads"))
    # Zero is for checkpoints to replace; the branch starts with its own small value instead.
    if init := args.take("init_scale", "init_values", check=scale, default=0):
        options["layer_scale_init"] = init
    return _finished(UniPerceiverBranch, args, options, {"qkv_bias": True, "layer_scale": True})


def _convnext(args: Arguments) -> ConvNeXtBranch:
    pretrained = args.given.get("pretrained")
    size = re.search(r"(?:^|/)convnext-(\w+)-", pretrained or "")
    if size is None or size[1] not in _CONVNEXTS:
        raise ConfigError(
            f"{args.owner}: pretrained={pretrained!r} names no known ConvNeXt; use one of "
            f"{[f'facebook/convnext-{name}-224' for name in _CONVNEXTS]}."
        )
    depths, width = _CONVNEXTS[size[1]]
    options = {
        "depths": depths,
        "dims": [width * 2**stage for stage in range(4)],
        "drop_path_rate": args.take("drop_path_rate", check=rate, default=0.0),
    }
    ratios = args.take("downsample_ratios", check=integers, default=None)
    # Of the single-branch baseline, which returns the maps of its stages as they are, whatever their size.
    args.take("real_size", check=integer, default=None)
    branch = _finished(ConvNeXtBranch, args, options, {"with_simple_fpn": False, "single_branch": True})
    if ratios is not None and list(ratios) != branch.strides:
        remedy = f"the {branch.num_blocks} blocks have the strides {branch.strides}"
        raise args.wrong("downsample_ratios", list(ratios), remedy)
    return branch


def _plain(args: Arguments, heads: tuple[str, ...] = ("num_heads",)) -> dict[str, Any]:
    """Takes out what all transformers share."""
    args.take("norm_layer", check=_norm, default=None)
    depth = args.take("depth", check=integer)
    return {
        "embed_dim": args.take("embed_dim", check=integer),
        "depth": depth,
        "num_heads": args.take(*heads, check=integer),
        "mlp_ratio": args.take("mlp_ratio", check=positive, default=4),
        "patch_size": args.take("patch_size", check=integer, default=16),
        "pretrain_img_size": args.take("pretrain_img_size", check=integer, default=224),
        "window_size": _windows(args, depth),
        "drop_path_rate": args.take("drop_path_rate", check=rate, default=0.0),
    }


def _vit(args: Arguments, qkv_bias: bool = False) -> dict[str, Any]:
    """Takes out what the DeiT and InternViT kinds share."""
    mlp = args.take("mlp_type", "Mlp_block", check=_mlp, default=None)
    return {
        "qkv_bias": args.take("qkv_bias", check=flag, default=qkv_bias),
        "activation": _MLPS["normal" if mlp is None else mlp],
    }


def _windows(args: Arguments, depth: int) -> list[int]:
    windowed = args.take("window_attn", check=per_block(depth, bool), default=False)
    sizes = args.take("window_size", check=per_block(depth, int), default=-1)
    windowed, sizes = ([v] * depth if isinstance(v, int) else v for v in (windowed, sizes))
    for index, (use, size) in enumerate(zip(windowed, sizes, strict=True)):
        if use and size < 1:
            raise args.wrong(f"window_size[{index}]", size, "give a size above 0 where window_attn is True")
    return [size if use else 0 for use, size in zip(windowed, sizes, strict=True)]


def _finished(
    make: Callable[..., Branch], args: Arguments, options: dict[str, Any], fixed: Mapping[str, Any] | None = None
) -> Any:
    """The branch, unless arguments are left over."""
    args.finish(_WITHOUT_EFFECT, _FIXED | (fixed or {}))
    return args.build(make, **options)


_KINDS = {"deit": _deit, "beit": _beit, "perceiver": _uniperceiver, "convnext": _convnext}
_CLASSIFIER_KINDS = {"deit": _deit_with_token, "augreg": _augreg}
_SINGLE_CLASSES = {"vit_models": _deit, "InternViT6B": _internvit, "ConvNextHFWrapper": _convnext}


def _mlp(value: object) -> str:
    return "" if value is None else one_of(_MLPS)(value)


def _norm_type(value: object) -> str:
    named = isinstance(value, str) and ("rms" in value.lower() or "layer" in value.lower())
    return "" if named else one_of(("LayerNorm", "RMSNorm"))(value)


def _norm_or_none(value: object) -> str:
    wanted = "" if isinstance(value, str) and value == "none" else _norm(value)
    return wanted and f"{wanted}, or 'none'"


def _norm(value: object) -> str:
    """LayerNorm by its name, as ``dict(type="LN")``, as the class or as a partial of it."""
    eps = 1e-6
    if isinstance(value, partial):
        value, eps = value.func, value.keywords.get("eps", eps)
    elif isinstance(value, Mapping):
        value, eps = value.get("type"), value.get("eps", eps)
    if isinstance(value, str):
        name = value.rpartition(".")[2].lower().replace("_", "")
        value = nn.LayerNorm if name in ("layernorm", "ln") else value
    return "" if value is nn.LayerNorm and eps == 1e-6 else "'LayerNorm' (with eps=1e-6)"
