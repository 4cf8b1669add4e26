"""Small models that find something in noise."""

from __future__ import annotations

import torch
from torch import nn

from piip.engine.config import load_config
from piip.modeling.instantiate import instantiate_model

LSNET = ["model.backbone.bottom_up.dims=[16,16,32,32]", "model.backbone.out_channels=16"]

# Config and overrides by kind.
SMALL = {
    "lsnet_fpn": ("COCO-Detection/retinanet_lsnet_t_1x", [*LSNET, "model.backbone.bottom_up.depths=[0,2,0,2]"]),
    "retinanet": (
        "quickstart/retinanet_lsnet_digits",
        [*LSNET, "model.backbone.bottom_up.depths=[0,1,2,0]", "model.head.conv_dims=[16]"],
    ),
    "mask_rcnn": (
        "quickstart/mask_rcnn_lsnet_digits",
        [
            *LSNET,
            "model.backbone.bottom_up.depths=[0,1,2,0]",
            "model.proposal_generator.post_nms_topk=[40,40]",
            "model.roi_heads.box_head.fc_dims=[32]",
            "model.roi_heads.box_predictor.input_shape.channels=32",
            "model.roi_heads.mask_head.conv_dims=[16]",
        ],
    ),
    "classifier": (
        "quickstart/classification_piip_digits",
        [*(f"model.network.branches.{k}.depth=1" for k in range(3)), "model.network.interaction_indexes=1"],
    ),
    "piip": (
        "quickstart/mask_rcnn_piip_digits",
        [
            *(f"model.backbone.bottom_up.branches.{k}.window_size=5" for k in range(3)),
            *(f"model.backbone.bottom_up.branches.{k}.depth=1" for k in range(3)),
            "model.backbone.bottom_up.interaction_indexes=1",
        ],
    ),
}


def arguments(kind: str) -> list[str]:
    """The same for a command line."""
    config, overrides = SMALL[kind]
    return ["--config-file", config, *overrides]


def small(kind: str) -> nn.Module:
    """A model whose layers all do something, and whose detections differ in score."""
    config, overrides = SMALL[kind]
    torch.manual_seed(0)
    node = load_config(config, overrides).model
    if kind == "piip":  # two branches will do
        pyramid = node.backbone.bottom_up
        pyramid.branches, pyramid.resolutions = pyramid.branches[::2], [128, 56]
    model = instantiate_model(node)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if name.startswith(("head.", "proposal_generator.", "roi_heads.")) and hasattr(module, "weight"):
            nn.init.kaiming_normal_(module.weight)  # as they start, all places have one score
        if name.endswith("mask_head.predictor"):
            nn.init.normal_(module.weight)
        if hasattr(module, "attention_biases"):
            nn.init.normal_(module.attention_biases)
    return model.eval()
