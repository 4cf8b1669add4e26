"""Building our modules from the class names and arguments of the released configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import ConfigError, did_you_mean
from ..modeling.branches import Branch, ViTBranch
from ..modeling.piip import PIIP
from ..modeling.single_branch import SingleBranch

__all__ = ["build_from_official"]

_PIIP_CLASSES = {"PIIPTwoBranch": 2, "PIIPThreeBranch": 3, "PIIPFourBranch": 4}

# Arguments that choose an implementation or say where files are, and change no number here.
_WITHOUT_EFFECT = {
    "type", "pretrained", "pretrain_patch_size", "with_fpn", "with_cp", "output_dtype", "cal_flops", "norm_layer",
    "out_indices", "use_flash_attn",
}  # fmt: skip


def build_from_official(class_name: str, args: Mapping[str, Any]) -> nn.Module:
    """Ports a released-style config: our module for a released class and its constructor arguments.

    The released four-branch class builds its branch 4 from the settings of branch 3. Here it is built from its own, and
    :func:`load_official` exchanges it where a checkpoint holds the other one.

    Branches of the DeiT kind are known, i.e. those whose ``pretrained`` path contains "deit", which is how the
    released code tells the kinds apart.

    Args:
        class_name: ``PIIPTwoBranch``, ``PIIPThreeBranch``, ``PIIPFourBranch`` or ``vit_models``.
        args: constructor arguments as in the released config.

    Returns:
        a PIIP or SingleBranch, ready for :func:`load_official`.

    Raises:
        ConfigError: for a class, an argument or a branch kind that is not known.
    """
    args = dict(args)
    if class_name == "vit_models":
        return SingleBranch(_deit(args))
    if class_name not in _PIIP_CLASSES:
        known = [*_PIIP_CLASSES, "vit_models"]
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
    _check_used(class_name, args)
    return PIIP(
        [_branch(s) for s in settings], resolutions, interaction_indexes=groups, interaction=interaction,
        out_features=outputs,
    )  # fmt: skip


def _branch(settings: dict[str, Any]) -> Branch:
    pretrained = settings.get("pretrained") or ""
    if "deit" not in pretrained:
        raise ConfigError(
            f"a branch with pretrained={pretrained!r} is not of the DeiT kind, the only one known so far."
        )
    return _deit(settings)


def _deit(settings: dict[str, Any]) -> ViTBranch:
    settings = dict(settings)
    depth = settings["depth"]
    windowed = settings.pop("window_attn", [False] * depth)
    sizes = settings.pop("window_size", [0] * depth)
    branch = ViTBranch(
        embed_dim=settings.pop("embed_dim"),
        depth=settings.pop("depth"),
        num_heads=settings.pop("num_heads"),
        mlp_ratio=settings.pop("mlp_ratio", 4),
        patch_size=settings.pop("patch_size", 16),
        pretrain_img_size=settings.pop("pretrain_img_size", 224),
        qkv_bias=settings.pop("qkv_bias", False),
        window_size=[size if use else 0 for size, use in zip(sizes, windowed, strict=True)],
        # Without flash attention the released class pads after the projection.
        pad_after_qkv=not settings.get("use_flash_attn", False),
        layer_scale_init=settings.pop("init_scale", 1e-4),
        drop_path_rate=settings.pop("drop_path_rate", 0.0),
        activation="gelu_tanh" if settings.pop("mlp_type", settings.pop("Mlp_block", None)) == "fused_mlp" else "gelu",
    )
    _check_used("branch", settings)
    return branch


def _check_used(owner: str, rest: Mapping[str, Any]) -> None:
    unknown = sorted(set(rest) - _WITHOUT_EFFECT)
    if unknown:
        raise ConfigError(f"arguments {unknown} of {owner} are unknown; known configs do not have them.")
