"""Branches with the pretrained weights of the published models; leaf configs set what differs.

Each is a tiny network description, not a network: using one loads and builds nothing.
"""

from detectron2.config import LazyCall as L

from piip.modeling.branches import ViTBranch

# DeiT (T) has no layer scale in its weights: it stays at one.
deit_tiny = L(ViTBranch)(
    embed_dim=192,
    depth=12,
    num_heads=3,
    window_size=14,
    drop_path_rate=0.05,
    weights="timm://deit_tiny_patch16_224.fb_in1k",
)

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
