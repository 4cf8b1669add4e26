"""LSNet under timm's names: ``timm.create_model("lsnet_t")`` works after ``import piip``.

Only names and addresses are here; the network itself is imported when one is made.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

__all__: list[str] = []  # register_model adds the names


def _cfg(name: str, classifier: str | tuple[str, ...]) -> dict[str, Any]:
    return {
        "url": f"https://huggingface.co/jameslahm/lsnet/resolve/main/{name}.pth",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (4, 4),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.0.c",
        "classifier": classifier,
        "paper_ids": "arXiv:2503.23135",
        "paper_name": "LSNet: See Large, Focus Small",
        "origin_url": "https://github.com/THU-MIG/lsnet",
    }


default_cfgs = generate_default_cfgs(
    {f"lsnet_{size}": _cfg(f"lsnet_{size}", "head.l") for size in "tsb"}
    | {f"lsnet_{size}_distill": _cfg(f"lsnet_{size}_distill", ("head.l", "head_dist.l")) for size in "tsb"}
)


def _create(size: str, pretrained: bool, distillation: bool = False, **kwargs: Any) -> nn.Module:
    from .modeling.lsnet import VARIANTS, LSNetClassifier
    from .modeling.lsnet.weights import filter_weights

    return build_model_with_cfg(
        LSNetClassifier,
        f"lsnet_{size}_distill" if distillation else f"lsnet_{size}",
        pretrained,
        pretrained_filter_fn=filter_weights,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **VARIANTS[size],
        distillation=distillation,
        **kwargs,
    )


@register_model
def lsnet_t(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LSNet-T; with ``distillation=True`` the one with two heads."""
    return _create("t", pretrained, **kwargs)


@register_model
def lsnet_s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LSNet-S; with ``distillation=True`` the one with two heads."""
    return _create("s", pretrained, **kwargs)


@register_model
def lsnet_b(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LSNet-B; with ``distillation=True`` the one with two heads."""
    return _create("b", pretrained, **kwargs)


@register_model
def lsnet_t_distill(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LSNet-T with a second head that learned from a teacher."""
    return _create("t", pretrained, distillation=True, **kwargs)


@register_model
def lsnet_s_distill(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LSNet-S with a second head that learned from a teacher."""
    return _create("s", pretrained, distillation=True, **kwargs)


@register_model
def lsnet_b_distill(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LSNet-B with a second head that learned from a teacher."""
    return _create("b", pretrained, distillation=True, **kwargs)
