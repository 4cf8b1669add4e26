"""Detectors without Detectron2's inference: the same detections."""

from __future__ import annotations

import pytest
import torch

from piip.engine.config import load_config
from piip.errors import ConfigError
from piip.export import network_of
from piip.export.compare import compare
from piip.modeling.instantiate import instantiate_model
from tests.export.models import small


@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
@pytest.mark.parametrize("size", [(96, 160), (128, 64)])
def test_the_detections_are_those_of_detectron2(kind: str, size: tuple[int, int]) -> None:
    network = network_of(small(kind), "model")
    image = network.image(size, seed=3)
    with torch.no_grad():
        wanted, given = network.reference(image), network.module(image)
    assert len(wanted["boxes"]) > 10
    assert list(given) == ["boxes", "scores", "classes", *["masks"] * (kind == "mask_rcnn")]
    compare(wanted, given, size)
    assert (given["scores"].diff() <= 0).all()


@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
def test_nothing_found_is_an_empty_answer(kind: str) -> None:
    model = small(kind)
    if kind == "retinanet":
        model.test_score_thresh = 1.0
    else:
        model.roi_heads.box_predictor.test_score_thresh = 1.0
    network = network_of(model, "model")
    with torch.no_grad():
        given = network.module(network.image((64, 64), seed=0))
    assert {name: len(x) for name, x in given.items()} == dict.fromkeys(given, 0)
    assert given["boxes"].shape == (0, 4)


def test_few_proposals_are_no_more_detections() -> None:
    model = small("mask_rcnn")
    model.proposal_generator.nms_thresh = 0.01  # leaves far fewer than there is room for
    network = network_of(model, "model")
    image = network.image((64, 64), seed=0)
    with torch.no_grad():
        wanted, given = network.reference(image), network.module(image)
    assert 0 < len(wanted["boxes"]) == len(given["boxes"])
    compare(wanted, given, (64, 64))


def test_other_detectors_are_refused() -> None:
    overrides = ["model.backbone.bottom_up.branches.0.embed_dim=64"]
    model = instantiate_model(load_config("quickstart/dino_piip_digits", overrides).model)
    with pytest.raises(ConfigError, match=r"a whole DINO cannot be exported; .* --what backbone exports"):
        network_of(model, "model")
    model = small("mask_rcnn")
    model.roi_heads.box_predictor = torch.nn.ModuleList([model.roi_heads.box_predictor])  # as in a cascade
    with pytest.raises(ConfigError, match="a whole GeneralizedRCNN with StandardROIHeads cannot be exported"):
        network_of(model, "model")
