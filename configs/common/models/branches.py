"""Branches with the pretrained weights of the published models; leaf configs set what differs.

Each is a tiny network description, not a network: using one loads and builds nothing.
"""

from detectron2.config import LazyCall as L

from piip.modeling.branches import (
    BEiTBranch,
    ConvNeXtBranch,
    InternViTBranch,
    LSNetBranch,
    UniPerceiverBranch,
    ViTBranch,
)
from piip.modeling.lsnet import VARIANTS

# DeiT has no layer scale in its weights: it stays at one. S and B are for classifiers.
deit_tiny = L(ViTBranch)(
    embed_dim=192,
    depth=12,
    num_heads=3,
    window_size=14,
    drop_path_rate=0.05,
    weights="timm://deit_tiny_patch16_224.fb_in1k",
)
deit_small = L(ViTBranch)(embed_dim=384, depth=12, num_heads=6, weights="timm://deit_small_patch16_224.fb_in1k")
deit_base = L(ViTBranch)(embed_dim=768, depth=12, num_heads=12, weights="timm://deit_base_patch16_224.fb_in1k")

# DeiT III, pretrained on ImageNet-21k at 224 pixels and fine-tuned on ImageNet-1k.
deit3_small = L(ViTBranch)(
    embed_dim=384,
    depth=12,
    num_heads=6,
    window_size=14,
    drop_path_rate=0.05,
    weights="timm://deit3_small_patch16_224.fb_in22k_ft_in1k",
)
deit3_base = L(ViTBranch)(
    embed_dim=768,
    depth=12,
    num_heads=12,
    window_size=14,
    drop_path_rate=0.15,
    weights="timm://deit3_base_patch16_224.fb_in22k_ft_in1k",
)
deit3_large = L(ViTBranch)(
    embed_dim=1024,
    depth=24,
    num_heads=16,
    window_size=14,
    drop_path_rate=0.4,
    weights="timm://deit3_large_patch16_224.fb_in22k_ft_in1k",
)

# DeiT III at 384 pixels, with every third block looking at all tokens: the branches of DINO.
deit3_small_384 = L(ViTBranch)(
    embed_dim=384,
    depth=12,
    num_heads=6,
    pretrain_img_size=384,
    window_size=[24, 24, 0] * 4,
    drop_path_rate=0.05,
    weights="timm://deit3_small_patch16_384.fb_in22k_ft_in1k",
)
deit3_base_384 = L(ViTBranch)(
    embed_dim=768,
    depth=12,
    num_heads=12,
    pretrain_img_size=384,
    window_size=[24, 24, 0] * 4,
    drop_path_rate=0.15,
    weights="timm://deit3_base_patch16_384.fb_in22k_ft_in1k",
)
deit3_large_384 = L(ViTBranch)(
    embed_dim=1024,
    depth=24,
    num_heads=16,
    pretrain_img_size=384,
    window_size=[24, 24, 0] * 8,
    drop_path_rate=0.4,
    weights="timm://deit3_large_patch16_384.fb_in22k_ft_in1k",
)

# "How to train your ViT?" (AugReg), 384 pixels. These weights and those of MAE have no layer scale: it stays at one.
augreg_small = L(InternViTBranch)(
    embed_dim=384,
    depth=12,
    num_heads=6,
    pretrain_img_size=384,
    window_size=28,
    drop_path_rate=0.2,
    weights="timm://vit_small_patch16_384.augreg_in21k_ft_in1k",
)
augreg_base = L(InternViTBranch)(
    embed_dim=768,
    depth=12,
    num_heads=12,
    pretrain_img_size=384,
    window_size=28,
    drop_path_rate=0.3,
    weights="timm://vit_base_patch16_384.augreg_in21k_ft_in1k",
)
augreg_large = L(InternViTBranch)(
    embed_dim=1024,
    depth=24,
    num_heads=16,
    pretrain_img_size=384,
    window_size=28,
    drop_path_rate=0.4,
    weights="timm://vit_large_patch16_384.augreg_in21k_ft_in1k",
)

# AugReg at 224 pixels, for classifiers, whose branches have no layer scale and one rate of stochastic depth.
augreg_small_224 = L(InternViTBranch)(
    embed_dim=384,
    depth=12,
    num_heads=6,
    layer_scale_init=None,
    class_token=True,
    drop_path_rate=[0.05] * 12,
    weights="timm://vit_small_patch16_224.augreg_in21k_ft_in1k",
)
augreg_base_224 = L(InternViTBranch)(
    embed_dim=768,
    depth=12,
    num_heads=12,
    layer_scale_init=None,
    class_token=True,
    drop_path_rate=[0.2] * 12,
    weights="timm://vit_base_patch16_224.augreg_in21k_ft_in1k",
)
augreg_large_224 = L(InternViTBranch)(
    embed_dim=1024,
    depth=24,
    num_heads=16,
    layer_scale_init=None,
    class_token=True,
    drop_path_rate=[0.4] * 24,
    weights="timm://vit_large_patch16_224.augreg_in21k_ft_in1k",
)

# MAE; the huge one was trained with patches of 14 pixels.
mae_base = L(InternViTBranch)(
    embed_dim=768,
    depth=12,
    num_heads=12,
    window_size=28,
    drop_path_rate=0.15,
    weights="timm://vit_base_patch16_224.mae",
)
mae_large = L(InternViTBranch)(
    embed_dim=1024,
    depth=24,
    num_heads=16,
    window_size=28,
    drop_path_rate=0.4,
    weights="timm://vit_large_patch16_224.mae",
)
mae_huge = L(InternViTBranch)(
    embed_dim=1280,
    depth=32,
    num_heads=16,
    use_act_checkpoint=True,
    drop_path_rate=0.4,
    weights="timm://vit_huge_patch14_224.mae",
)

# DINOv2, trained with patches of 14 pixels.
dinov2_small = L(InternViTBranch)(
    embed_dim=384,
    depth=12,
    num_heads=6,
    pretrain_img_size=518,
    window_size=28,
    drop_path_rate=0.2,
    weights="timm://vit_small_patch14_dinov2.lvd142m",
)
dinov2_base = L(InternViTBranch)(
    embed_dim=768,
    depth=12,
    num_heads=12,
    pretrain_img_size=518,
    window_size=28,
    drop_path_rate=0.3,
    weights="timm://vit_base_patch14_dinov2.lvd142m",
)
dinov2_large = L(InternViTBranch)(
    embed_dim=1024,
    depth=24,
    num_heads=16,
    pretrain_img_size=518,
    window_size=28,
    drop_path_rate=0.4,
    weights="timm://vit_large_patch14_dinov2.lvd142m",
)

# BEiT v2, pretrained on ImageNet-1k and fine-tuned on ImageNet-21k.
beitv2_base = L(BEiTBranch)(
    embed_dim=768,
    depth=12,
    num_heads=12,
    window_size=28,
    drop_path_rate=0.15,
    weights="timm://beitv2_base_patch16_224.in1k_ft_in22k",
)
beitv2_large = L(BEiTBranch)(
    embed_dim=1024,
    depth=24,
    num_heads=16,
    window_size=28,
    drop_path_rate=0.4,
    weights="timm://beitv2_large_patch16_224.in1k_ft_in22k",
)

# Uni-Perceiver, in the form that ViT-Adapter released.
uniperceiver_base = L(UniPerceiverBranch)(
    embed_dim=768,
    depth=12,
    num_heads=12,
    window_size=28,
    drop_path_rate=0.15,
    weights="https://github.com/czczup/ViT-Adapter/releases/download/v0.3.1/uni-perceiver-base-L12-H768-224size-pretrained_converted.pth",
)
uniperceiver_large = L(UniPerceiverBranch)(
    embed_dim=1024,
    depth=24,
    num_heads=16,
    window_size=28,
    drop_path_rate=0.4,
    weights="https://github.com/czczup/ViT-Adapter/releases/download/v0.3.1/uni-perceiver-large-L24-H1024-224size-pretrained_converted.pth",
)

# InternViT-6B, trained with patches of 14 pixels.
internvit_6b = L(InternViTBranch)(
    embed_dim=3200,
    depth=48,
    num_heads=25,
    qkv_bias=False,
    norm="RMS",
    qk_norm=True,
    layer_scale_init=0.1,
    use_act_checkpoint=True,
    drop_path_rate=0.4,
    weights="https://huggingface.co/OpenGVLab/InternVL/resolve/main/intern_vit_6b_224px.pth",
)

# ConvNeXt, trained on ImageNet-1k.
convnext_tiny = L(ConvNeXtBranch)(
    depths=[3, 3, 9, 3], dims=[96, 192, 384, 768], drop_path_rate=0.3, weights="timm://convnext_tiny.fb_in1k"
)
convnext_small = L(ConvNeXtBranch)(
    depths=[3, 3, 27, 3], dims=[96, 192, 384, 768], drop_path_rate=0.3, weights="timm://convnext_small.fb_in1k"
)
convnext_base = L(ConvNeXtBranch)(
    depths=[3, 3, 27, 3], dims=[128, 256, 512, 1024], drop_path_rate=0.4, weights="timm://convnext_base.fb_in1k"
)

# LSNet, trained on ImageNet-1k.
lsnet_tiny = L(LSNetBranch)(**VARIANTS["t"], weights="lsnet://lsnet_t.pth")
lsnet_small = L(LSNetBranch)(**VARIANTS["s"], weights="lsnet://lsnet_s.pth")
lsnet_base = L(LSNetBranch)(**VARIANTS["b"], weights="lsnet://lsnet_b.pth")
