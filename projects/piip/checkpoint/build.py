"""Building our modules from the class names and arguments of the released configs."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
from ..modeling.single_branch import SingleBranch

__all__ = ["build_from_official"]

_PIIP_CLASSES = {"PIIPTwoBranch": 2, "PIIPThreeBranch": 3, "PIIPFourBranch": 4}

# Arguments that choose an implementation or say where files are, and change no number here.
_WITHOUT_EFFECT = {
    "type", "pretrained", "pretrain_patch_size", "with_fpn", "with_cp", "output_dtype", "cal_flops", "norm_layer",
    "out_indices", "use_flash_attn", "layerscale_force_fp32", "freeze_vit", "init_cfg", "norm_cfg",
}  # fmt: skip

# Depths and first width of the ConvNeXt sizes; every stage doubles the width.
_CONVNEXTS = {
    "tiny": ((3, 3, 9, 3), 96),
    "small": ((3, 3, 27, 3), 96),
    "base": ((3, 3, 27, 3), 128),
    "large": ((3, 3, 27, 3), 192),
}

# Arguments of the released classes that no released config sets to anything else.
_FIXED = {"drop_rate": 0, "attn_drop_rate": 0, "in_chans": 3, "qk_scale": None}


def build_from_official(class_name: str, args: Mapping[str, Any]) -> nn.Module:
    """Ports a released-style config: our module for a released class and its constructor arguments.

    The released four-branch class builds its branch 4 from the settings of branch 3. Here it is built from its own, and
    :func:`load_official` exchanges it where a checkpoint holds the other one.

    The family of a branch follows from its ``pretrained`` path, as in the released code: "deit", then "beit",
    "perceiver" and "convnext" are looked for in it, and a path with none of them means the InternViT kind.

    Args:
        class_name: ``PIIPTwoBranch``, ``PIIPThreeBranch``, ``PIIPFourBranch``, or a single-branch baseline:
            ``vit_models`` (DeiT kind), ``InternViT6B``, ``ConvNextHFWrapper``.
        args: constructor arguments as in the released config.

    Returns:
        a PIIP or SingleBranch, ready for :func:`load_official`.

    Raises:
        ConfigError: for a class, an argument or a branch kind that is not known.
    """
    args = dict(args)
    if class_name in _SINGLE_CLASSES:
        return SingleBranch(_SINGLE_CLASSES[class_name](args))
    if class_name not in _PIIP_CLASSES:
        known = [*_PIIP_CLASSES, *_SINGLE_CLASSES]
        raise ConfigError(
            f"released class {class_name!r} is unknown; known are {known}.{did_you_mean(class_name, known)}"
        )
    count = _PIIP_CLASSES[class_name]
    settings = [dict(args.pop(f"branch{k}")) for k in range(count, 0, -1)]  # finest first
    resolutions = [s.pop("real_size") for s in settings]
    groups = [s.pop("interaction_indexes") for s in settings]
    norm = args.pop("norm_layer", "LayerNorm")
    interaction = {
        "attention": {"deform": "deform", "normal": "dense"}[args.pop("interact_attn_type", "normal")],
        "num_heads": args.pop("deform_num_heads", 6),
        "num_points": args.pop("n_points", 4),
        "value_ratio": args.pop("deform_ratio", 1.0),
        "ffn_ratio": args.pop("cffn_ratio", 0.25) * bool(args.pop("with_cffn", False)),
        "drop_path_rate": args.pop("interaction_drop_path_rate", 0.3),
        "with_proj": args.pop("interaction_proj", True),
        "with_norm": norm != "none",
    }
    outputs = ("c3", "c4", "c5") if args.pop("is_dino", False) else ("c2", "c3", "c4", "c5")
    per_stage = not args.pop("with_simple_fpn", True)
    out_steps = args.pop("out_interaction_indexes", [])
    _check_used(class_name, args)
    return PIIP(
        [_branch(s) for s in settings], resolutions, interaction_indexes=groups, interaction=interaction,
        out_interaction_indexes=out_steps if per_stage else None, out_features=outputs,
    )  # fmt: skip


def _branch(settings: Mapping[str, Any]) -> Branch:
    """The released code tells the kinds apart by the path of the pretrained weights, in this order."""
    pretrained = settings.get("pretrained") or ""
    for part, build in _KINDS.items():
        if part in pretrained:
            return build(settings)
    return _internvit(settings)


def _deit(settings: Mapping[str, Any]) -> ViTBranch:
    settings = dict(settings)
    return _finished(
        ViTBranch(
            **_plain(settings),
            **_vit(settings),
            # Without flash attention the released class pads after the projection.
            pad_after_qkv=not settings.pop("use_flash_attn", False),
            layer_scale_init=settings.pop("init_scale", 1e-4),
        ),
        settings,
    )


def _internvit(settings: Mapping[str, Any]) -> InternViTBranch:
    settings = dict(settings)
    norm = settings.pop("norm_layer_type", "RMSNorm")
    norms = {"LayerNorm": "LN", "RMSNorm": "RMS"}
    if norm not in norms:
        raise ConfigError(f"norm_layer_type={norm!r} is unknown; known are {sorted(norms)}.")
    return _finished(
        InternViTBranch(
            **_plain(settings),
            **_vit(settings),
            norm=norms[norm],
            qk_norm=settings.pop("qk_normalization", norm == "RMSNorm"),
            layer_scale_init=settings.pop("init_values", 0.1) or None,
        ),
        settings,
    )


def _beit(settings: Mapping[str, Any]) -> BEiTBranch:
    settings = {"qkv_bias": False, **settings}
    branch = BEiTBranch(**_plain(settings), layer_scale_init=settings.pop("init_values", 1e-6))
    return _finished(
        branch,
        settings,
        qkv_bias=True,
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        use_shared_rel_pos_bias=False,
    )


def _uniperceiver(settings: Mapping[str, Any]) -> UniPerceiverBranch:
    settings = dict(settings)
    if "num_attention_heads" in settings:
        settings["num_heads"] = settings.pop("num_attention_heads")
    options = _plain(settings)
    for name in ("init_values", "init_scale"):
        if name in settings:
            options["layer_scale_init"] = settings.pop(name)
    return _finished(UniPerceiverBranch(**options), settings, qkv_bias=True, layer_scale=True)


def _convnext(settings: Mapping[str, Any]) -> ConvNeXtBranch:
    settings = dict(settings)
    pretrained = settings.get("pretrained") or ""
    size = re.search(r"(?:^|/)convnext-(\w+)-", pretrained)
    if size is None or size[1] not in _CONVNEXTS:
        raise ConfigError(
            f"pretrained={pretrained!r} names no known ConvNeXt; known are "
            f"{[f'facebook/convnext-{name}-224' for name in _CONVNEXTS]}."
        )
    for name in ("real_size", "with_simple_fpn", "single_branch"):
        settings.pop(name, None)  # of the single-branch baseline, which returns the maps of its stages as they are
    ratios = settings.pop("downsample_ratios", None)
    depths, width = _CONVNEXTS[size[1]]
    branch = ConvNeXtBranch(
        depths, [width * 2**stage for stage in range(4)], drop_path_rate=settings.pop("drop_path_rate", 0.0)
    )
    if ratios is not None and list(ratios) != branch.strides:
        raise ConfigError(
            f"downsample_ratios={list(ratios)} do not belong to {pretrained}, whose {branch.num_blocks} blocks have "
            f"the strides {branch.strides}."
        )
    return _finished(branch, settings)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Takes out what all transformers share."""
    depth = settings.pop("depth")
    return {
        "embed_dim": settings.pop("embed_dim"),
        "depth": depth,
        "num_heads": settings.pop("num_heads"),
        "mlp_ratio": settings.pop("mlp_ratio", 4),
        "patch_size": settings.pop("patch_size", 16),
        "pretrain_img_size": settings.pop("pretrain_img_size", 224),
        "window_size": _windows(settings, depth),
        "drop_path_rate": settings.pop("drop_path_rate", 0.0),
    }


def _vit(settings: dict[str, Any]) -> dict[str, Any]:
    """Takes out what the DeiT and InternViT kinds share."""
    mlp = {settings.pop(name, None) for name in ("mlp_type", "Mlp_block")}
    return {
        "qkv_bias": settings.pop("qkv_bias", False),
        "activation": "gelu_tanh" if "fused_mlp" in mlp else "gelu",
    }


def _windows(settings: dict[str, Any], depth: int) -> list[int]:
    windowed = settings.pop("window_attn", [False] * depth)
    sizes = settings.pop("window_size", [0] * depth)
    windowed, sizes = ([v] * depth if isinstance(v, int) else v for v in (windowed, sizes))
    return [size if use else 0 for size, use in zip(sizes, windowed, strict=True)]


def _finished(branch: Branch, rest: Mapping[str, Any], **fixed: Any) -> Any:
    _check_used(f"a branch with pretrained={rest.get('pretrained')!r}", rest, _FIXED | fixed)
    return branch


_KINDS = {"deit": _deit, "beit": _beit, "perceiver": _uniperceiver, "convnext": _convnext}
_SINGLE_CLASSES = {"vit_models": _deit, "InternViT6B": _internvit, "ConvNextHFWrapper": _convnext}


def _check_used(owner: str, rest: Mapping[str, Any], fixed: Mapping[str, Any] = _FIXED) -> None:
    unknown = sorted(set(rest) - _WITHOUT_EFFECT - set(fixed))
    if unknown:
        raise ConfigError(f"arguments {unknown} of {owner} are unknown; known configs do not have them.")
    for name, value in fixed.items():
        if rest.get(name, value) != value:
            raise ConfigError(f"{name}={rest[name]!r} of {owner} is not supported; released models have {value!r}.")
