"""Segmentors of one's own pictures and label maps: trained, evaluated, shown; mistakes told before the training."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from piip import LazyPredictor
from piip.checkpoint import to_official
from piip.engine.config import load_config
from piip.modeling.instantiate import instantiate_model
from tests.engine.running import fail, load, train

OWN = "quickstart/semantic_fpn_lsnet_custom_sem_seg.py"
CLASSES = "dataloader.custom.classes=[ground,sky]"


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    """Pictures of 90 x 70 pixels, bright above the horizon, and the overrides that name them."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(4):
            labels = (np.arange(70)[:, None] < rng.integers(20, 50)).repeat(90, 1).astype(np.uint8)
            picture = rng.integers(0, 90, (70, 90, 3)) + 150 * labels[..., None]
            Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "images" / split / f"{i}.jpg")
            labels[:, :4] = 255
            Image.fromarray(labels).save(tmp_path / "labels" / split / f"{i}.png")
    return [
        *(
            f"dataloader.custom.{kind}.{split}={tmp_path / kind / split}"
            for kind in ("images", "labels")
            for split in ("train", "val")
        ),
        *(f"dataloader.{part}.num_workers=0" for part in ("train", "test")),
        "dataloader.train.mapper.augmentations.0.short_edge=64",
        "dataloader.train.mapper.augmentations.1.crop_size=[64,64]",
        "dataloader.test.mapper.augmentations.0.short_edge_length=64",
        "dataloader.train.total_batch_size=2",
        "model.train_size=64",
        "train.init_checkpoint=",
        "train.max_iter=3",
        "train.report.num_images=1",
    ]


def test_own_label_maps(own: list[str], tmp_path: Path, project: Path, capsys) -> None:
    out = tmp_path / "out"
    train(out, *own, CLASSES, config=OWN)
    results = json.loads((out / "eval.json").read_text())["results"]["sem_seg"]
    assert {"mIoU", "IoU-ground", "IoU-sky"} <= results.keys()
    assert (out / "report" / "predictions.png").exists()
    weights = out / "model_final.pth"
    assert load(weights)["model"]["sem_seg_head.predictor.weight"].shape[0] == 2

    predictor = LazyPredictor(str(out / "config.yaml"), weights)
    assert predictor.metadata.stuff_classes == ["ground", "sky"]
    picture = np.asarray(Image.open(tmp_path / "images/val/0.jpg"))
    logits = predictor(picture)["sem_seg"]
    assert logits.shape == (2, 70, 90)

    spec = importlib.util.spec_from_file_location("demo", project / "tools" / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    command = ["--config-file", str(out / "config.yaml"), "--checkpoint", str(weights), "--output", str(tmp_path / "d")]
    assert demo.main([*command, "--input", str(tmp_path / "images/val/0.jpg"), "--json"]) == 0
    assert "90x70" in capsys.readouterr().out
    records = json.loads((tmp_path / "d" / "predictions.json").read_text())
    assert sum(mask_util.area(r["segmentation"]) for r in records) == 70 * 90


def test_views_at_other_scales_see_the_picture_itself(own: list[str], tmp_path: Path) -> None:
    size = "dataloader.test.mapper.augmentations.0.short_edge_length=128"
    views = [size, "model.test_scales=[0.5,1,1.75]", "model.test_flip=True"]
    predictor = LazyPredictor(load_config(OWN, [*own, CLASSES, *views]))
    seen = []
    predictor.model.backbone.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[-2:])))
    probabilities = predictor(np.asarray(Image.open(tmp_path / "images/val/0.jpg")))["sem_seg"]
    # 90 x 70 becomes 165 x 128 and then 192 x 128; at other scales it becomes a multiple of 32, too.
    assert seen == [(64, 96)] * 2 + [(128, 192)] * 2 + [(224, 352)] * 2
    assert torch.allclose(probabilities.sum(0), torch.ones(70, 90), atol=1e-5)


def test_training_starts_from_the_segmentor_of_other_classes(own: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    released = instantiate_model(load_config("ADE20K-SemanticSegmentation/semantic_fpn_lsnet_t_40k.py").model)
    torch.save({"meta": {}, "state_dict": to_official(released)}, tmp_path / "released.pth")
    predictor = LazyPredictor(load_config(OWN, [*own, CLASSES]), tmp_path / "released.pth")
    taken, given = predictor.model.state_dict(), released.state_dict()
    other = {name for name in given if not torch.equal(taken[name], given[name])}
    assert other == {"sem_seg_head.predictor.weight", "sem_seg_head.predictor.bias"}


def test_mistakes_are_told_before_the_training(own: list[str], tmp_path: Path) -> None:
    command = ["--config-file", OWN, *own, f"train.output_dir={tmp_path / 'out'}"]
    told = fail(*command, "dataloader.custom.classes=[ground]")
    assert "4 of the 4 pictures" in told
    assert "train/0.png' has the values 1, but there are 1 classes" in told
    Image.new("L", (91, 70)).save(tmp_path / "labels/val/3.png")
    assert "val/3.png' is 91x70 pixels (width x height), but its image" in fail(*command, CLASSES)
    assert not (tmp_path / "out" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("config", "override", "message"),
    [
        ("semantic_fpn_piip_digits", "model.sem_seg_head.num_classes=5", "has 11 categories .* the model predicts 5"),
        ("semantic_fpn_piip_digits", "dataloader.train.mapper.num_classes=5", "maps of 5 classes, .* predicts 11"),
        ("panoptic_fpn_piip_digits", "model.sem_seg_head.num_classes=3", "has 2 categories .* the model predicts 3"),
        ("panoptic_fpn_piip_digits", "model.roi_heads.num_classes=3", "has 10 categories .* the model predicts 3"),
        ("panoptic_fpn_piip_digits", "dataloader.test.mapper.num_classes=3", "maps of 3 classes, .* predicts 2"),
        ("classification_piip_digits", "model.num_classes=5", "has 10 categories .* the model predicts 5"),
        ("classification_piip_digits", "model.network.num_classes=5", "PIIPClassifier has 5 classes, but .*=10"),
    ],
)
def test_numbers_of_classes_that_differ(config: str, override: str, message: str, tmp_path: Path) -> None:
    told = fail("--config-file", f"quickstart/{config}.py", override, f"train.output_dir={tmp_path}")
    assert re.search(message, told), told
