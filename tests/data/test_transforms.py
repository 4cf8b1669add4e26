"""Random augmentations of the recipes: the sizes that come out, samples without objects, the same ones every time."""

from __future__ import annotations

from collections.abc import Sequence

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch

from piip.data import DetectionMapper, build_train_loader, coco_dataset
from piip.data.transforms import large_scale_jitter, multi_scale, multi_scale_test, published_short_edge
from piip.errors import ConfigError


def shapes(augmentation: T.Augmentation, size: tuple[int, int], count: int = 200) -> np.ndarray:
    """Heights and widths that an image becomes, and how many transforms it went through."""
    np.random.seed(0)
    found = []
    for _ in range(count):
        sample = T.AugInput(np.zeros((*size, 3), np.uint8))
        found.append((len(augmentation(sample).transforms), *sample.image.shape[:2]))
    return np.array(found)


@pytest.mark.parametrize(("long_edge", "short_edge"), [(1120, 672), (1344, 806), (1568, 941), (1792, 1075)])
def test_published_short_edge(long_edge: int, short_edge: int) -> None:
    assert published_short_edge(long_edge) == short_edge


# A tenth of the published sizes: their proportions, rounded down.
EDGES = {48, 51, 54, 57, 60, 64, 67, 70, 73, 76, 80}


def test_multi_scale_of_half_the_images() -> None:
    found = shapes(multi_scale(0.1, 200), (60, 80))
    whole, cut = found[found[:, 0] == 3], found[found[:, 0] == 4]
    assert len(whole) + len(cut) == 200
    assert 70 < len(whole) < 130
    assert set(whole[:, 1]) == EDGES
    assert (whole[:, 2] == (whole[:, 1] * 80 / 60 + 0.5).astype(int)).all()
    # What was cut out has another shape.
    assert set(cut[:, 1:].min(axis=1)) == EDGES
    assert len({round(h / w, 2) for _, h, w in cut}) > 20


def test_multi_scale_of_long_images_and_its_last_crop() -> None:
    assert shapes(multi_scale(0.15, 1000), (40, 160))[:, 1:].max() == 199
    assert shapes(multi_scale(0.15, 154), (40, 160))[:, 1:].max() == 154


def test_first_crop_of_multi_scale() -> None:
    """Its sides: 384 to 600 pixels, or what the image has."""
    found = shapes(multi_scale(0.1, 200).augs[0].aug, (30, 300))[:, 1:]
    assert (found.min(), found.max()) == (38, 60)
    assert len(set(found[:, 0])) > 15
    found = shapes(multi_scale(0.2, 200).augs[0].aug, (10, 10))[:, 1:]
    assert found.min() >= 76
    assert found.max() <= 120


@pytest.mark.parametrize(("factor", "size"), [(1.0, (800, 1333)), (1.5, (1200, 1999)), (1.75, (1400, 2332))])
def test_multi_scale_test(factor: float, size: tuple[int, int]) -> None:
    resize = multi_scale_test(factor)
    assert (resize.short_edge_length[0], resize.max_size) == size


def test_large_scale_jitter() -> None:
    found = shapes(large_scale_jitter(112), (48, 64), 400)[:, 1:]
    assert found.max() == 112
    assert 11 <= found[:, 1].min() < 20
    # Scales are uniform between 0.1 and 2: about half of the images are larger than the square.
    assert 0.4 < (found[:, 1] == 112).mean() < 0.65


@pytest.mark.parametrize(
    ("make", "args", "message"),
    [
        (multi_scale, (0, 1024), r"factor=0 "),
        (multi_scale, (1.0, -1), r"max_size=-1 "),
        (multi_scale_test, (-1,), r"factor=-1 "),
        (large_scale_jitter, (0,), r"size=0 "),
        (large_scale_jitter, (1024, 2.0, 0.1), r"min_scale <= max_scale, but got 2.0 and 0.1"),
    ],
)
def test_refusals(make, args: Sequence[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(*args)


def loader(own_data, augmentation: T.Augmentation, mask_format: str, **changes):
    dataset = coco_dataset("own", own_data.json, own_data.images, own_data.classes)
    mapper = DetectionMapper(
        is_train=True,
        augmentations=[T.RandomFlip(), augmentation],
        image_format="RGB",
        **{"use_instance_mask": True, "instance_mask_format": mask_format, **changes},
    )
    return build_train_loader(dataset, mapper, total_batch_size=2, seed=3)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_crops_without_objects_are_samples_like_others(own_data, mask_format: str) -> None:
    """The objects are 10 x 12 pixels of 40 x 30: small crops miss many of them, and cut many."""
    small = multi_scale(0.2, 60)
    batches = iter(loader(own_data, small, mask_format))
    samples = [sample for _ in range(10) for sample in next(batches)]
    counts = [len(sample["instances"]) for sample in samples]
    assert set(counts) == {0, 1}
    for sample in samples:
        instances, (height, width) = sample["instances"], sample["image"].shape[1:]
        assert instances.image_size == (height, width)
        boxes = instances.gt_boxes.tensor
        assert (boxes >= 0).all()
        assert (boxes[:, 2::2] <= width).all()
        assert (boxes[:, 3::2] <= height).all()
        # Masks are cut together with their boxes, up to what resizing rounds.
        tight = instances.gt_masks.get_bounding_boxes().tensor
        assert torch.allclose(tight, boxes.to(tight), atol=5)


def test_without_masks(own_data) -> None:
    batch = next(iter(loader(own_data, multi_scale(0.5, 256), "bitmask", use_instance_mask=False)))
    assert not any(sample["instances"].has("gt_masks") for sample in batch)


@pytest.mark.parametrize("augmentation", [multi_scale(0.5, 256), large_scale_jitter(128)])
def test_same_seed_same_samples(own_data, augmentation: T.Augmentation) -> None:
    first, second = (iter(loader(own_data, augmentation, "polygon")) for _ in range(2))
    for _ in range(3):
        for a, b in zip(next(first), next(second), strict=True):
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
