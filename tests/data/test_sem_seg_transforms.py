"""Sizes and colours of the segmentation recipes."""

from __future__ import annotations

import colorsys

import detectron2.data.transforms as T
import numpy as np
import pytest

from piip.data.sem_seg_transforms import PhotometricDistortion, RandomRatioResize, ResizeToMultiple
from piip.errors import ConfigError


def resized(augmentation: T.Augmentation, height: int, width: int) -> tuple[int, int]:
    sample = T.AugInput(np.zeros((height, width, 3), np.uint8), sem_seg=np.zeros((height, width), np.uint8))
    augmentation(sample)
    assert sample.image.shape[:2] == sample.sem_seg.shape
    return sample.sem_seg.shape


def test_random_ratio_keeps_the_frame_and_the_proportion() -> None:
    np.random.seed(0)
    augmentation = RandomRatioResize(204, 51, (0.5, 2.0))
    short = [resized(augmentation, 60, 90) for _ in range(200)]
    assert all(abs(w / h - 1.5) < 0.05 for h, w in short)
    assert min(h for h, _ in short) <= 30
    assert 95 <= max(h for h, _ in short) <= 102
    # So long that the long edge decides: it grows with the ratio, too.
    longest = [max(resized(augmentation, 20, 200)) for _ in range(200)]
    assert 380 <= max(longest) <= 408
    assert min(longest) <= 125


def test_ratio_of_one_is_the_size_of_tests() -> None:
    assert resized(RandomRatioResize(2048, 512, (1.0, 1.0)), 300, 400) == (512, 683)
    assert resized(RandomRatioResize(2048, 512, (1.0, 1.0)), 100, 800) == (256, 2048)


@pytest.mark.parametrize(("size", "expected"), [((512, 683), (512, 704)), ((1, 33), (32, 64)), ((64, 32), (64, 32))])
def test_resize_to_multiple(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized(ResizeToMultiple(32), *size) == expected


def only(**kwargs) -> PhotometricDistortion:
    """One kind of distortion, in every picture."""
    off = {"brightness": 0, "contrast": (1, 1), "saturation": (1, 1), "hue": 0}  # which leave a picture as it is
    return PhotometricDistortion(**{**off, **kwargs})


def distort(augmentation: PhotometricDistortion, colour: tuple[int, int, int], count: int = 60) -> np.ndarray:
    np.random.seed(1)
    found = []
    for _ in range(count):
        sample = T.AugInput(np.full((2, 2, 3), colour, np.uint8), sem_seg=np.ones((2, 2), np.uint8))
        augmentation(sample)
        assert sample.image.dtype == np.uint8
        assert (sample.sem_seg == 1).all()
        found.append(sample.image[0, 0])
    return np.array(found, dtype=int)


def test_brightness_is_an_offset_and_contrast_a_factor() -> None:
    found = distort(only(brightness=32), (100, 50, 240))
    moved = found[:, 0] - 100
    assert 20 < moved.max() <= 32
    assert -32 <= moved.min() < -20
    assert (np.abs(found[:, 1] - 50 - moved) <= 1).all()
    assert found[:, 2].max() == 255
    assert 10 < (moved == 0).sum() < 50  # half of the pictures stay as they are
    found = distort(only(contrast=(0.5, 1.5)), (100, 50, 0))
    assert found[:, 0].min() < 60
    assert found[:, 0].max() > 140
    assert (np.abs(found[:, 0] - 2 * found[:, 1]) <= 2).all()
    assert (found[:, 2] == 0).all()


def test_saturation_and_hue_leave_the_rest_alone() -> None:
    hsv = np.array([colorsys.rgb_to_hsv(*c) for c in distort(only(saturation=(0.5, 1.5)), (200, 100, 100)) / 255])
    assert hsv[:, 1].min() < 0.3
    assert hsv[:, 1].max() > 0.7
    assert np.allclose(hsv[:, 2], 200 / 255, atol=0.02)
    hsv = np.array([colorsys.rgb_to_hsv(*c) for c in distort(only(hue=36), (100, 200, 100)) / 255])
    degrees = 360 * hsv[:, 0] - 120
    assert 25 < degrees.max() <= 38
    assert -38 <= degrees.min() < -25
    assert np.allclose(hsv[:, 1], 0.5, atol=0.03)


def test_order_and_choice_vary() -> None:
    assert len({tuple(c) for c in distort(PhotometricDistortion(), (120, 80, 200), 100)}) > 80


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomRatioResize(100, 200), "0 < short_edge <= long_edge"),
        (lambda: RandomRatioResize(200, 100, (2.0, 0.5)), r"ratio_range=\(2.0, 0.5\)"),
        (lambda: ResizeToMultiple(0), "divisor=0"),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
