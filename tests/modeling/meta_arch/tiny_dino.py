"""A DINO on a tiny pyramid, and images for it."""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, Instances

from piip.modeling import PIIP, ChannelMapper, ViTBranch
from piip.modeling.meta_arch import DINO, ContrastiveDenoising, DINOCriterion, DINOTransformer
from tests.reference import weights

MEAN = STD = [127.5, 127.5, 127.5]


def tiny_backbone(num_outputs=4):
    branches = [ViTBranch(w, 2, 2, patch_size=8, pretrain_img_size=64) for w in (32, 32, 64)]
    bottom_up = PIIP(branches, [128, 96, 64], 2, {"num_heads": 2}, out_features=["c3", "c4", "c5"])
    return ChannelMapper(bottom_up, ["c3", "c4", "c5"], 32, num_outputs)


def tiny_transformer(**changes):
    settings = {"num_heads": 4, "num_points": 2, "ffn_dim": 64, "encoder_layers": 2, "decoder_layers": 3}
    return DINOTransformer(num_classes=5, dim=32, **{**settings, "num_queries": 20, **changes})


def tiny_dino(detections_per_image=20, **changes):
    denoising = ContrastiveDenoising(5, 32, num_queries=6)
    transformer = tiny_transformer(**changes)
    model = DINO(tiny_backbone(), transformer, denoising, DINOCriterion(), 5, MEAN, STD, detections_per_image)
    return model


def trained_like(model):
    """Random weights where training starts from zeros, so that everything has an effect."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().sum() == 0:
                parameter.normal_(std=0.1, generator=generator)
    return model


def picture(height, width, boxes=(), classes=(), seed=0):
    """What the mapper gives for one image."""
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return {"image": image, "instances": instances, "height": height, "width": width, "file_name": f"{seed}.png"}


def batch():
    """Images of different sizes, one of them empty."""
    return [
        picture(96, 128, [(10, 20, 40, 60), (50, 10, 120, 90), (5, 70, 30, 90)], [0, 3, 4]),
        picture(128, 100, seed=1),
        picture(64, 64, [(8, 8, 40, 40)], [2], seed=2),
    ]


def filled(module):
    """Weights by the fill rule of the reference numbers, from our names."""

    def tag(name, shape):
        if "sampling_offsets" in name:
            return "off_w" if name.endswith("weight") else "off_b"
        if len(shape) > 1:
            return "fan"
        return "norm" if name.endswith("weight") else "bias"

    module.load_state_dict(weights([(k, list(v.shape), tag(k, v.shape)) for k, v in module.state_dict().items()]))
    return module
