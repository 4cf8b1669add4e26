"""Accuracy, calibration and corruption errors against numbers counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from piip.data import register_image_folder, register_images
from piip.errors import ConfigError, DataError
from piip.evaluation import ClassificationEvaluator, CorruptionEvaluator, build_classification_evaluator
from piip.evaluation.classification import (
    ALEXNET_ERRORS,
    CONFUSION_FILE,
    calibration_error,
    mean_corruption_error,
)

# True class and scores of seven classes.
ROWS = [
    (0, [0.90, 0.02, 0.02, 0.02, 0.02, 0.01, 0.01]),  # right, bin of 0.9
    (1, [0.88, 0.06, 0.02, 0.01, 0.01, 0.01, 0.01]),  # second best, the same bin
    (6, [0.30, 0.20, 0.15, 0.13, 0.12, 0.08, 0.02]),  # last
    (5, [0.04, 0.04, 0.03, 0.03, 0.02, 0.50, 0.34]),  # right
]


def run(evaluator, rows=ROWS, **more):
    evaluator.reset()
    for i, (label, scores) in enumerate(rows):
        sample = {"label": label, "image_id": i, **{k: v[i] for k, v in more.items()}}
        evaluator.process([sample], [{"scores": torch.tensor(scores)}])
    return evaluator.evaluate()


def test_numbers_counted_by_hand(tmp_path):
    evaluator = ClassificationEvaluator(7, output_dir=str(tmp_path / "inference"))
    found = run(evaluator)["classification"]
    assert found["top1"] == pytest.approx(50)
    assert found["top5"] == pytest.approx(75)
    # Bins of fifteenths: (0.90 + 0.88 - 1) / 4, 0.30 / 4, (1 - 0.50) / 4.
    assert found["ECE"] == pytest.approx(100 * (0.78 + 0.30 + 0.50) / 4, abs=1e-4)
    want = np.zeros((7, 7), int)
    for true, predicted in ((0, 0), (1, 0), (6, 0), (5, 5)):
        want[true, predicted] += 1
    assert (evaluator.confusion == want).all()
    assert (np.load(tmp_path / "inference" / CONFUSION_FILE) == want).all()
    assert run(evaluator) == {"classification": found}, "what was before is forgotten"


def test_only_the_classes_of_the_data_compete():
    evaluator = ClassificationEvaluator(7, subset=[1, 5, 6])
    found = run(evaluator, [ROWS[1], ROWS[3]])["classification"]
    assert found["top1"] == 100
    assert "top5" not in found
    assert found["ECE"] == pytest.approx(100 * (1 - 0.06 / 0.08 + 1 - 0.50 / 0.88) / 2, abs=1e-4)
    with pytest.raises(DataError, match="label 0, which is none of the 3 classes"):
        run(evaluator, ROWS[:1])


def test_calibration_error_takes_upper_bounds_into_their_bins():
    scores, right = np.array([0.2, 0.2, 0.2, 1.0, 0.0]), np.array([True, False, False, True, False])
    assert calibration_error(scores, right, bins=5) == pytest.approx(abs(0.6 - 1) / 5)
    assert calibration_error(scores[3:], right[3:]) == 0


def test_other_numbers_of_classes_are_told():
    with pytest.raises(ConfigError, match=r"scores of shape \(7,\), but the dataset has 3 classes"):
        run(ClassificationEvaluator(3))


def test_mean_corruption_error_is_relative_to_alexnet():
    assert mean_corruption_error(ALEXNET_ERRORS) == pytest.approx(100)
    assert mean_corruption_error({"snow": ALEXNET_ERRORS["snow"] / 2, "fog": 0.0}) == pytest.approx(25)
    # The published ones are the means over severities of, for gaussian noise:
    assert ALEXNET_ERRORS["gaussian_noise"] == pytest.approx(np.mean([0.69528, 0.82542, 0.93554, 0.98138, 0.99452]))
    assert len(ALEXNET_ERRORS) == 15


def test_corruption_errors_counted_by_hand():
    right, wrong = (0, [0.9, 0.1]), (1, [0.9, 0.1])
    # Of snow every second image is wrong at severity 5, of which there are two; of fog all are wrong.
    rows = [right] * 5 + [wrong] + [wrong] * 5
    severities = [1, 2, 3, 4, 5, 5, 1, 2, 3, 4, 5]
    found = run(CorruptionEvaluator(["snow", "fog"]), rows, corruption=["snow"] * 6 + ["fog"] * 5, severity=severities)
    found = found["corruption"]
    assert found["CE-snow"] == pytest.approx(100 * 0.1 / 0.866816)
    assert found["CE-fog"] == pytest.approx(100 / 0.819324)
    assert found["mCE"] == pytest.approx((found["CE-snow"] + found["CE-fog"]) / 2)
    assert found["top1"] == pytest.approx(100 * (1 - 1.1 / 2))


def test_incomplete_corruptions_are_told():
    with pytest.raises(DataError, match="corruption 'snow' of severity 2"):
        run(CorruptionEvaluator(["snow"]), [(0, [0.9, 0.1])], corruption=["snow"], severity=[1])
    with pytest.raises(ConfigError, match="not known for corruption 'rain'"):
        CorruptionEvaluator(["rain"])


def test_evaluator_follows_the_dataset(tmp_path):
    for name in ("b", "d"):
        (tmp_path / name).mkdir()
    register_image_folder("subset_images", str(tmp_path), ["a", "b", "c", "d"], subset=True)
    evaluator = build_classification_evaluator("subset_images")
    assert (evaluator.num_classes, evaluator.subset.tolist()) == (4, [1, 3])
    register_images("memory_images", [np.zeros((2, 2), np.uint8)], [0], ["a", "b"])
    assert build_classification_evaluator("memory_images").subset.tolist() == [0, 1]
    assert isinstance(build_classification_evaluator("imagenet_c"), CorruptionEvaluator)
    with pytest.raises(DataError, match="'digits_scenes_val' is not registered for classification"):
        build_classification_evaluator("digits_scenes_val")
