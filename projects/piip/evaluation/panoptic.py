"""Panoptic quality, counted by torchmetrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from ..data import get_dataset_dicts
from ..data.panoptic import read_segments
from ..errors import DataError

__all__ = ["PanopticEvaluator"]

# What torchmetrics counts for every class, to be added up over processes.
_STATES = ("iou_sum", "true_positives", "false_positives", "false_negatives")


class PanopticEvaluator(DatasetEvaluator):
    """Panoptic, segmentation and recognition quality: PQ, SQ, RQ, in percent; over all classes, things and stuff.

    Source: Panoptic Segmentation (arXiv:1801.00868), Sec. 4.1. Pixels of no segment do not count in the ground truth.

    Args:
        dataset_name: a registered dataset whose dicts have ``pan_seg_file_name`` and ``segments_info`` with contiguous
            ``category_id``.

    Raises:
        DataError: if the dataset is unknown, is not there or has no panoptic maps.
    """

    def __init__(self, dataset_name: str) -> None:
        records = get_dataset_dicts(dataset_name, filter_empty=False)
        if "pan_seg_file_name" not in records[0]:
            raise DataError(f"Dataset {dataset_name!r} has no panoptic maps to compare with; choose another one.")
        self._truth = {record["file_name"]: record for record in DatasetCatalog.get(dataset_name)}
        metadata = MetadataCatalog.get(dataset_name)
        self._things = len(metadata.thing_classes)
        # Classes of stuff come after those of things.
        self._names = [*metadata.thing_classes, *metadata.stuff_classes]
        self.reset()

    def reset(self) -> None:
        from torchmetrics.detection import PanopticQuality  # takes seconds to import

        self._metric = PanopticQuality(
            things=set(range(self._things)),
            stuffs=set(range(self._things, len(self._names))),
            allow_unknown_preds_category=True,
            return_sq_and_rq=True,
            return_per_class=True,
            sync_on_compute=False,
        )

    def process(self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]) -> None:
        for item, output in zip(inputs, outputs, strict=True):
            truth = self._truth[item["file_name"]]
            ids = torch.from_numpy(read_segments(truth["pan_seg_file_name"]))
            predicted, segments = output["panoptic_seg"]
            self._metric.update(
                self._segments(predicted.cpu().long(), segments), self._segments(ids, truth["segments_info"])
            )

    def _segments(self, ids: Tensor, segments: Sequence[Mapping[str, Any]]) -> Tensor:
        """Class and number of every pixel's segment, (1, H, W, 2); pixels of none have the class -1."""
        classes = torch.full(ids.shape, -1)
        for segment in segments:
            offset = 0 if segment["isthing"] else self._things
            classes[ids == segment["id"]] = segment["category_id"] + offset
        return torch.stack([classes, ids], -1)[None]

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        states = comm.gather({name: getattr(self._metric, name) for name in _STATES})
        if not comm.is_main_process():
            return None
        for name in _STATES:
            setattr(self._metric, name, sum(state[name] for state in states))
        # Classes that are neither there nor predicted do not count.
        seen = sum(getattr(self._metric, name) for name in _STATES[1:]) > 0
        values = 100 * self._metric.compute()
        results: dict[str, float] = {}
        is_thing = torch.arange(len(self._names)) < self._things
        for suffix, chosen in (("", seen), ("_th", seen & is_thing), ("_st", seen & ~is_thing)):
            means = values[chosen].mean(0).tolist()
            results |= {f"{kind}{suffix}": mean for kind, mean in zip(("PQ", "SQ", "RQ"), means, strict=True)}
        results |= {
            f"PQ-{name}": values[i, 0].item() if seen[i] else float("nan") for i, name in enumerate(self._names)
        }
        return {"panoptic_seg": results}
