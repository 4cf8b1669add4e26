"""What a model answers about a picture, task by task: drawn, counted, described and as records for a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from torch import Tensor

from ..errors import ConfigError
from .draw import class_name, draw_instances, draw_labels, draw_scores, draw_segments

__all__ = ["Answers", "answers_of"]


class Answers(ABC):
    """Speaks of the answers to one task.

    Args:
        metadata: gives the names of the classes.
    """

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata

    @abstractmethod
    def draw(self, image: np.ndarray, answer: Any, shorter_side: int) -> np.ndarray:
        """The picture with the answer on it; ``shorter_side`` as in :func:`~piip.visualization.draw_instances`."""

    @abstractmethod
    def count(self, answer: Any) -> Counter[int]:
        """How often every class was found; sums over several pictures make sense."""

    @abstractmethod
    def describe(self, counts: Counter[int]) -> str:
        """The counts in words."""

    @abstractmethod
    def records(self, answer: Any, image_id: int) -> list[dict[str, Any]]:
        """The answer in the manner of COCO's results, with ids of the dataset and names."""


class _Instances(Answers):
    def draw(self, image: np.ndarray, answer: Any, shorter_side: int) -> np.ndarray:
        return draw_instances(image, answer, self.metadata, shorter_side)

    def count(self, answer: Any) -> Counter[int]:
        return Counter(answer.pred_classes.tolist())

    def describe(self, counts: Counter[int]) -> str:
        return _objects(counts, self.metadata)

    def records(self, answer: Any, image_id: int) -> list[dict[str, Any]]:
        ids = _dataset_ids(self.metadata, "thing")
        records = instances_to_coco_json(answer.to("cpu"), image_id)
        for record in records:
            category = record["category_id"]
            record["category_id"] = ids.get(category, category)
            record["category"] = class_name(self.metadata, category)
        return records


class _Segments(Answers):
    """Classes of stuff are counted, in pixels, after those of things."""

    def draw(self, image: np.ndarray, answer: Any, shorter_side: int) -> np.ndarray:
        ids, segments = answer
        return draw_segments(image, ids.cpu().numpy(), segments, self.metadata, shorter_side)

    def count(self, answer: Any) -> Counter[int]:
        counts: Counter[int] = Counter()
        for segment in answer[1]:
            if segment["isthing"]:
                counts[segment["category_id"]] += 1
            else:
                counts[self._things + segment["category_id"]] += segment["area"]
        return counts

    def describe(self, counts: Counter[int]) -> str:
        things = Counter({c: n for c, n in counts.items() if c < self._things})
        stuff = [c - self._things for c, _ in counts.most_common() if c >= self._things]
        return ", ".join([_objects(things, self.metadata), *(class_name(self.metadata, c, "stuff") for c in stuff)])

    def records(self, answer: Any, image_id: int) -> list[dict[str, Any]]:
        ids, records = answer[0].cpu().numpy(), []
        for segment in answer[1]:
            kind, category = "thing" if segment["isthing"] else "stuff", segment["category_id"]
            record = {
                "image_id": image_id,
                "category_id": _dataset_ids(self.metadata, kind).get(category, category),
                "category": class_name(self.metadata, category, kind),
                "isthing": segment["isthing"],
                "segmentation": _run_lengths(ids == segment["id"]),
            }
            records.append({**record, "score": segment["score"]} if "score" in segment else record)
        return records

    @property
    def _things(self) -> int:
        return len(self.metadata.get("thing_classes") or ())


class _Pixels(Answers):
    def draw(self, image: np.ndarray, answer: Tensor, shorter_side: int) -> np.ndarray:
        return draw_labels(image, _labels(answer), self.metadata, shorter_side)

    def count(self, answer: Tensor) -> Counter[int]:
        values, counts = np.unique(_labels(answer), return_counts=True)
        return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def describe(self, counts: Counter[int]) -> str:
        shares = [(c, 100 * n / sum(counts.values())) for c, n in counts.most_common()]
        named = [f"{share:.0f} % {class_name(self.metadata, c, 'stuff')}" for c, share in shares if share >= 1]
        return ", ".join([*named, f"{len(shares) - len(named)} smaller"] if len(named) < len(shares) else named)

    def records(self, answer: Tensor, image_id: int) -> list[dict[str, Any]]:
        ids, labels = _dataset_ids(self.metadata, "stuff"), _labels(answer)
        return [
            {
                "image_id": image_id,
                "category_id": ids.get(category, category),
                "category": class_name(self.metadata, category, "stuff"),
                "segmentation": _run_lengths(labels == category),
            }
            for category in np.unique(labels).tolist()
        ]


class _Scores(Answers):
    def draw(self, image: np.ndarray, answer: Tensor, shorter_side: int) -> np.ndarray:
        return draw_scores(image, answer, self.metadata, shorter_side)

    def count(self, answer: Tensor) -> Counter[int]:
        return Counter([int(answer.argmax())])

    def describe(self, counts: Counter[int]) -> str:
        return ", ".join(f"{n} x {class_name(self.metadata, c)}" for c, n in counts.most_common())

    def records(self, answer: Tensor, image_id: int) -> list[dict[str, Any]]:
        """The five likeliest classes."""
        scores, classes = (values.tolist() for values in answer.topk(min(5, len(answer))))
        return [
            {"image_id": image_id, "category_id": c, "category": class_name(self.metadata, c), "score": score}
            for c, score in zip(classes, scores, strict=True)
        ]


def _objects(counts: Counter[int], metadata: Metadata) -> str:
    total = sum(counts.values())
    classes = ", ".join(f"{n} {class_name(metadata, c)}" for c, n in counts.most_common())
    return f"{total} object{'s' * (total != 1)}" + (f" ({classes})" if classes else "")


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    run = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": run["size"], "counts": run["counts"].decode("ascii")}


def _labels(logits: Tensor) -> np.ndarray:
    return logits.argmax(0).cpu().numpy()


def _dataset_ids(metadata: Metadata, kind: str) -> dict[int, int]:
    ids = metadata.get(f"{kind}_dataset_id_to_contiguous_id") or {}
    return {contiguous: category_id for category_id, contiguous in ids.items()}


# A panoptic model answers to the first three, and its segments say the most.
_TASKS: dict[str, type[Answers]] = {
    "panoptic_seg": _Segments,
    "instances": _Instances,
    "sem_seg": _Pixels,
    "scores": _Scores,
}


def answers_of(output: Mapping[str, Any], metadata: Metadata) -> tuple[Answers, Any]:
    """What speaks of a model's output for a picture, and the answer in it.

    Raises:
        ConfigError: when the model does something else than the tasks that are known here.
    """
    for key, kind in _TASKS.items():
        if key in output:
            return kind(metadata), output[key]
    raise ConfigError(f"the model predicts {', '.join(output)}, and only {', '.join(_TASKS)} can be shown.")
