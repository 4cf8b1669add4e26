"""Accuracy, calibration and confusion of classifiers, also on data sets of some classes and on corrupted images."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from ..checkpoint.files import write_atomically
from ..data.datasets.imagenet import CORRUPTIONS, SEVERITIES
from ..errors import ConfigError, DataError

__all__ = [
    "ALEXNET_ERRORS",
    "CONFUSION_FILE",
    "ClassificationEvaluator",
    "CorruptionEvaluator",
    "build_classification_evaluator",
    "calibration_error",
    "mean_corruption_error",
]

CONFUSION_FILE = "confusion_matrix.npy"

# Top-1 errors of AlexNet on ImageNet-C, averaged over the five severities, that its authors publish with the benchmark
# (https://github.com/hendrycks/robustness) and divide by: D. Hendrycks and T. Dietterich, arXiv:1903.12261, Sec. 4.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


class ClassificationEvaluator(DatasetEvaluator):
    """Top-1 and top-5 accuracy and expected calibration error, in percent.

    The confusion matrix is kept in :attr:`confusion` and, for the report, in a file.

    Args:
        num_classes: of the model.
        subset: classes that the data have; scores of all others are left out, as ImageNet-A and -R ask for.
        output_dir: where ``confusion_matrix.npy`` is written; None writes nothing.

    Attributes:
        confusion: (num_classes, num_classes), true class by predicted class, of the last evaluation; in the main
            process.

    Returns:
        from :meth:`evaluate`, ``{"classification": {"top1": ..., "top5": ..., "ECE": ...}}``; no top-5 where there are
        five classes or fewer.

    Raises:
        DataError: from :meth:`process`, for images without a label that can be right.
        ConfigError: from :meth:`process`, when the model does not give scores of so many classes.
    """

    def __init__(self, num_classes: int, subset: Sequence[int] | None = None, output_dir: str | None = None) -> None:
        self.num_classes = num_classes
        self.subset = np.arange(num_classes) if subset is None else np.unique(subset)
        self.output_dir = output_dir
        self.confusion: np.ndarray | None = None
        self.reset()

    def reset(self) -> None:
        # Per image: true class, predicted class, its score, whether the true one is among the best five.
        self._records: list[tuple[int, int, float, bool]] = []

    def process(self, inputs: list[dict], outputs: list[dict[str, Tensor]]) -> None:
        for sample, output in zip(inputs, outputs, strict=True):
            label, scores = sample.get("label"), output["scores"].double().cpu().numpy()
            if scores.shape != (self.num_classes,):
                raise ConfigError(
                    f"The model gives scores of shape {scores.shape}, but the dataset has {self.num_classes} classes; "
                    "set num_classes of the model."
                )
            if label not in self.subset:
                raise DataError(
                    f"Image {sample.get('file_name') or sample.get('image_id')!r} has the label {label}, which is none "
                    f"of the {len(self.subset)} classes to be evaluated."
                )
            scores = scores[self.subset]
            best = self.subset[np.argsort(-scores, kind="stable")[:5]]
            self._records.append((label, best[0], scores.max() / scores.sum(), label in best))

    def evaluate(self) -> dict[str, dict[str, float]]:
        records = list(itertools.chain(*comm.gather(self._records)))
        if not comm.is_main_process():
            return {}
        true, predicted, scores, in_top5 = map(np.asarray, zip(*records, strict=True))
        self.confusion = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)
        np.add.at(self.confusion, (true, predicted), 1)
        if self.output_dir:
            path = Path(self.output_dir, CONFUSION_FILE)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda f: np.save(f, self.confusion))
        right = true == predicted
        metrics = {"top1": 100 * right.mean()}
        if len(self.subset) > 5:
            metrics["top5"] = 100 * in_top5.mean()
        metrics["ECE"] = 100 * calibration_error(scores, right)
        return {"classification": {name: float(value) for name, value in metrics.items()}}


class CorruptionEvaluator(DatasetEvaluator):
    """Mean corruption error: the error under each corruption divided by AlexNet's, averaged, in percent.

    Source: arXiv:1903.12261, Sec. 4.1.

    Args:
        corruptions: those in the data, whose dicts have ``corruption`` and ``severity`` (1 to 5).

    Returns:
        from :meth:`evaluate`, ``{"corruption": {"mCE": ..., "top1": ..., "CE-gaussian_noise": ..., ...}}``.

    Raises:
        ConfigError: for a corruption of which AlexNet's error is not known.
        DataError: from :meth:`evaluate`, when a corruption has no images of some severity.
    """

    def __init__(self, corruptions: Sequence[str] = CORRUPTIONS) -> None:
        if unknown := [c for c in corruptions if c not in ALEXNET_ERRORS]:
            raise ConfigError(
                f"AlexNet's error is not known for corruption {unknown[0]!r}; use {list(ALEXNET_ERRORS)}."
            )
        self.corruptions = list(corruptions)
        self.reset()

    def reset(self) -> None:
        # Corruption, severity, images that are (right, wrong).
        self._counts = np.zeros((len(self.corruptions), len(SEVERITIES), 2), dtype=np.int64)

    def process(self, inputs: list[dict], outputs: list[dict[str, Tensor]]) -> None:
        for sample, output in zip(inputs, outputs, strict=True):
            wrong = int(output["scores"].argmax()) != sample["label"]
            self._counts[self.corruptions.index(sample["corruption"]), sample["severity"] - 1, int(wrong)] += 1

    def evaluate(self) -> dict[str, dict[str, float]]:
        gathered = comm.gather(self._counts)
        if not comm.is_main_process():
            return {}
        counts = np.sum(gathered, axis=0)
        if len(missing := np.argwhere(counts.sum(-1) == 0)):
            corruption, severity = missing[0]
            raise DataError(
                f"No image has the corruption {self.corruptions[corruption]!r} of severity {severity + 1}; complete "
                "the dataset."
            )
        means = (counts[..., 1] / counts.sum(-1)).mean(1)
        errors = dict(zip(self.corruptions, means.tolist(), strict=True))
        ratios = {f"CE-{c}": 100 * error / ALEXNET_ERRORS[c] for c, error in errors.items()}
        return {"corruption": {"mCE": mean_corruption_error(errors), "top1": 100 * float(1 - means.mean()), **ratios}}


def mean_corruption_error(errors: dict[str, float]) -> float:
    """The mean over corruptions of an error (in 0 to 1, averaged over severities) divided by AlexNet's, in percent."""
    return 100 * float(np.mean([error / ALEXNET_ERRORS[c] for c, error in errors.items()]))


def calibration_error(scores: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: how far scores and accuracy are apart, over bins of equal width.

    Source: C. Guo et al., arXiv:1706.04599, Sec. 2.

    Args:
        scores: (N,) of the predicted classes, in 0 to 1.
        right: (N,) whether they are the true ones.
        bins: number of bins; each holds its upper bound.
    """
    bin_of = np.clip(np.ceil(scores * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=scores - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(scores))


def build_classification_evaluator(dataset_name: str, output_dir: str | None = None) -> DatasetEvaluator:
    """Makes the evaluator that a dataset asks for.

    A dataset of corrupted images gets a :class:`CorruptionEvaluator`. One with the folders of some classes only is
    evaluated among those.

    Args:
        dataset_name: a registered dataset.
        output_dir: where the confusion matrix is written.

    Raises:
        DataError: for a dataset that is not registered, or not one of classification.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    if kind == "corruption":
        return CorruptionEvaluator(metadata.corruptions)
    if kind != "classification":
        raise DataError(
            f"Dataset {dataset_name!r} is not registered for classification; piip.data.register_image_folder and "
            "register_images do that."
        )
    subset = None
    if folders := metadata.get("class_folders"):
        subset = [i for i, folder in enumerate(folders) if os.path.isdir(os.path.join(metadata.image_root, folder))]
    return ClassificationEvaluator(len(metadata.thing_classes), subset, output_dir)
