"""Which packaged configs a checkpoint belongs to."""

from __future__ import annotations

import pytest

from piip.checkpoint import to_official
from piip.model_zoo.recognize import matching_configs
from piip.modeling import PIIP, SingleBranch
from tests.model_zoo.models import on_meta

COCO = "COCO-InstanceSegmentation/mask_rcnn"


def tensors_of(config, released=True, bare=False):
    model = on_meta(config)
    if bare:
        model = next(m for m in model.modules() if isinstance(m, PIIP | SingleBranch))
    return to_official(model) if released else model.state_dict()


@pytest.mark.parametrize(
    ("config", "released", "bare"),
    [
        (f"{COCO}_piip_sbl_1568_1120_672_beitv2_1x.py", True, False),
        pytest.param(f"{COCO}_piip_ct_vs_cb_1024_672_448_1x.py", False, False, marks=pytest.mark.slow),
        (f"{COCO}_piip_h6b_1024_512_1x.py", True, True),
        (f"{COCO}_vit_b_1024_1x.py", True, False),
        ("quickstart/dino_piip_digits.py", True, False),
    ],
)
def test_the_config_is_among_those_that_fit(config, released, bare):
    found = matching_configs(tensors_of(config, released, bare))
    assert config in found
    family = config.removesuffix("_1x.py")
    # Whatever else fits is the same network for another recipe, resolution or detector.
    if not bare:
        assert all(name.startswith(family) for name in found)


def test_resolutions_make_no_difference():
    found = matching_configs(tensors_of(f"{COCO}_piip_tsb_1120_896_448_1x.py"))
    assert {f"{COCO}_piip_tsb_{r}_1x.py" for r in ("1120_896_448", "1568_896_448", "1568_1120_672")} <= set(found)
    assert all(name.startswith(f"{COCO}_piip_tsb_") for name in found)


def test_models_that_no_config_has():
    tensors = tensors_of("quickstart/mask_rcnn_piip_digits.py")
    assert matching_configs({**tensors, "one.more": tensors["backbone.w1"]}) == []
    del tensors["backbone.w1"]
    assert matching_configs(tensors) == []
    assert matching_configs({}) == []
