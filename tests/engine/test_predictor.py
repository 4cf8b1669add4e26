"""Prediction with the model of a config: inputs, weights, devices, class names, refusals."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from skimage import data

from piip import LazyPredictor
from piip.engine.config import load_config
from piip.errors import CheckpointError, ConfigError, DataError

CONFIG = "quickstart/mask_rcnn_piip_digits.py"


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[50:210, 150:350])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """Weights that are random, but the same for all."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model_final.pth"
    torch.save({"model": instantiate(load_config(CONFIG).model).state_dict(), "iteration": 7}, path)
    return str(path)


@pytest.fixture(scope="module")
def predictor(checkpoint) -> LazyPredictor:
    return LazyPredictor(CONFIG, checkpoint, score_threshold=0.0)


def sizes_seen(predictor: LazyPredictor) -> list[tuple[int, ...]]:
    seen = []
    predictor.model.register_forward_pre_hook(lambda _, args: seen.extend(tuple(i["image"].shape) for i in args[0]))
    return seen


def test_instances_are_in_the_coordinates_of_the_picture(predictor, image):
    instances = predictor(image)["instances"]
    assert instances.image_size == image.shape[:2]
    assert len(instances) > 0
    assert instances.pred_masks.shape[1:] == image.shape[:2]
    x1, y1 = instances.pred_boxes.tensor[:, 2:].max(0).values
    assert x1 <= image.shape[1]
    assert y1 <= image.shape[0]
    assert not predictor.model.training
    assert not instances.scores.requires_grad


def test_a_list_gives_a_list(predictor, image):
    wide, narrow = predictor([image, image[:, :96]])
    assert wide["instances"].image_size == (160, 200)
    assert narrow["instances"].image_size == (160, 96)
    assert predictor([]) == []


def test_the_checkpoint_decides(image, predictor, checkpoint):
    cfg = load_config(CONFIG, [f"train.init_checkpoint={checkpoint}"])
    again = LazyPredictor(cfg, score_threshold=0.0)(image)["instances"]
    assert torch.equal(again.scores, predictor(image)["instances"].scores)
    torch.manual_seed(1)
    other = LazyPredictor(CONFIG, score_threshold=0.0)(image)["instances"]
    assert not torch.equal(again.scores, other.scores)


def test_without_a_checkpoint_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        LazyPredictor(CONFIG)
    assert "no checkpoint" in caplog.text


def test_tensors_that_stay_random_are_a_warning(caplog, checkpoint):
    with caplog.at_level(logging.WARNING):
        LazyPredictor(load_config(CONFIG, ["model.roi_heads.num_classes=3"]), checkpoint)
    assert "stay random" in caplog.text


def test_channel_order(predictor, checkpoint, image):
    swapped = LazyPredictor(CONFIG, checkpoint, score_threshold=0.0, input_format="BGR")
    expected = predictor(image)["instances"].scores
    assert torch.equal(swapped(np.ascontiguousarray(image[:, :, ::-1]))["instances"].scores, expected)
    assert not torch.equal(swapped(image)["instances"].scores, expected)


def test_test_augmentations_are_applied(checkpoint, image):
    cfg = load_config(CONFIG)
    cfg.dataloader.test.mapper.augmentations = load_config(
        "COCO-InstanceSegmentation/mask_rcnn_piip_tsb_1120_896_448_1x.py"
    ).dataloader.test.mapper.augmentations
    cfg.dataloader.test.mapper.augmentations[0].update(short_edge_length=64, max_size=72)
    predictor = LazyPredictor(cfg, checkpoint, score_threshold=0.0)
    seen = sizes_seen(predictor)
    instances = predictor(image)["instances"]
    assert seen == [(3, 58, 72)]
    assert instances.image_size == image.shape[:2]


def test_a_config_without_data_predicts_at_the_given_size(checkpoint, image):
    cfg = load_config(CONFIG)
    del cfg["dataloader"]
    predictor = LazyPredictor(cfg, checkpoint)
    seen = sizes_seen(predictor)
    predictor(image)
    assert seen == [(3, 160, 200)]
    assert predictor.metadata.get("thing_classes") is None


def test_score_threshold(predictor, checkpoint, image):
    scores = predictor(image)["instances"].scores
    threshold = scores.median().item()
    kept = LazyPredictor(CONFIG, checkpoint, score_threshold=threshold)(image)["instances"].scores
    assert 0 < len(kept) < len(scores)
    assert kept.min() > threshold


def test_autocast(checkpoint, image):
    predictor = LazyPredictor(CONFIG, checkpoint, score_threshold=0.0, amp_dtype="bfloat16")
    dtypes = []
    predictor.model.roi_heads.box_head.register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
    assert len(predictor(image)["instances"]) > 0
    assert dtypes == [torch.bfloat16]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU; CUDA_VISIBLE_DEVICES= runs it")
def test_without_a_gpu_the_cpu_is_used(checkpoint):
    assert load_config(CONFIG).train.device == "cuda"
    assert LazyPredictor(CONFIG, checkpoint).device.type == "cpu"
    assert LazyPredictor(CONFIG, checkpoint, device="cuda:0").device.type == "cpu"


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="device cuda:7 does not exist: there are 2"):
        LazyPredictor(CONFIG, device="cuda:7")


@pytest.mark.gpu
def test_gpu_agrees_with_the_cpu(checkpoint, image):
    gpu, cpu = (
        LazyPredictor(CONFIG, checkpoint, score_threshold=0.0, device=device)(image)["instances"].scores
        for device in ("cuda", "cpu")
    )
    assert (gpu.device.type, cpu.device.type) == ("cuda", "cpu")
    torch.testing.assert_close(gpu.cpu()[:20], cpu[:20], rtol=1e-2, atol=1e-3)


def test_class_names(predictor, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = [f"digit {i}" for i in range(10)]
    assert predictor.metadata.thing_classes == digits
    coco = load_config("COCO-InstanceSegmentation/mask_rcnn_vit_b_1024_1x.py")
    coco.model = load_config(CONFIG).model
    assert len(LazyPredictor(coco).metadata.thing_classes) == 80
    own = load_config("quickstart/mask_rcnn_piip_custom_coco.py", ["dataloader.custom.classes=[cat,dog]"])
    own.model, own.train.init_checkpoint = load_config(CONFIG).model, ""
    assert LazyPredictor(own).metadata.thing_classes == ["cat", "dog"]
    assert not list(tmp_path.iterdir())  # nothing was made or fetched


def test_a_saved_config_does_the_same(predictor, checkpoint, tmp_path, image):
    path = tmp_path / "config.yaml"
    LazyConfig.save(load_config(CONFIG), str(path))
    saved = LazyPredictor(path, checkpoint, score_threshold=0.0)
    assert torch.equal(saved(image)["instances"].scores, predictor(image)["instances"].scores)
    assert saved.metadata.thing_classes == predictor.metadata.thing_classes


def test_fused_layers_find_the_same(predictor, checkpoint, image):
    fused = LazyPredictor(CONFIG, checkpoint, score_threshold=0.0, fuse=True)
    assert len(list(fused.model.parameters())) < len(list(predictor.model.parameters()))
    want, got = predictor(image)["instances"], fused(image)["instances"]
    torch.testing.assert_close(got.scores, want.scores, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ("cat.jpg", "numpy array or a list of them, not str"),
        (["cat.jpg"], "numpy array, not str"),
        (np.zeros((8, 8), np.uint8), r"\(height, width, 3\), not \(8, 8\)"),
        (np.zeros((8, 8, 4), np.uint8), r"\(height, width, 3\), not \(8, 8, 4\)"),
        (np.zeros((0, 8, 3), np.uint8), r"\(height, width, 3\), not \(0, 8, 3\)"),
        (np.zeros((8, 8, 3), np.float32), "uint8 with values 0 to 255, not float32"),
    ],
)
def test_what_is_no_picture_is_refused(predictor, picture, words):
    with pytest.raises(DataError, match=words):
        predictor(picture)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"config": "quickstart/mask_rcnn_piip_digit.py"}, "Did you mean 'quickstart/mask_rcnn_piip_digits.py'"),
        ({"input_format": "rgb"}, "'RGB' or 'BGR'"),
        ({"amp_dtype": "half"}, "'float16', 'bfloat16' or None"),
        ({"score_threshold": 50}, "between 0 and 1"),
        ({"device": "gpu"}, "device 'gpu' is unknown"),
        ({"compile": "reduce_overhead"}, "compile='reduce_overhead' must be true.*Did you mean 'reduce-overhead'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        LazyPredictor(**{"config": CONFIG, **arguments})


def test_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"model_final\.pth.*does not exist"):
        LazyPredictor(CONFIG, tmp_path / "model_final.pth")
