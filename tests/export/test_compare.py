"""What counts as the same answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from piip.errors import ConfigError
from piip.export.compare import compare

SIZE = (100, 200)


def detections(count: int = 10) -> dict[str, Tensor]:
    corner = torch.arange(count)[:, None] * 10.0
    return {
        "boxes": torch.cat([corner, corner, corner + 8, corner + 5], dim=1),
        "scores": torch.linspace(0.9, 0.5, count),
        "classes": torch.arange(count) % 3,
        "masks": torch.rand(count, 4, 4, generator=torch.Generator().manual_seed(0)),
    }


def test_the_error_is_relative_to_the_largest_value() -> None:
    maps = {"p3": torch.tensor([1000.0, 1.0]), "p4": torch.zeros(2)}
    assert compare(maps, maps, SIZE) == 0
    assert compare(maps, {**maps, "p3": torch.tensor([1000.0, 1.05])}, SIZE) == pytest.approx(5e-5, rel=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"p3": torch.tensor([1000.0, 1.2])}, r"'p3' of the exported file is off by 2.0e-04 .* 100 x 200"),
        ({"p3": torch.tensor([1000.0, float("nan")])}, "'p3' of the exported file is off by nan"),
        ({"p3": torch.zeros(3)}, r"has shape \(3,\) .* that of the model \(2,\)"),
        ({"p4": torch.zeros(2)}, r"has the outputs \['p4'\], the model \['p3'\]"),
    ],
)
def test_what_differs_is_refused(given: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare({"p3": torch.tensor([1000.0, 1.0])}, given, SIZE)


def test_the_order_of_detections_does_not_matter() -> None:
    wanted, order = detections(), torch.randperm(10, generator=torch.Generator().manual_seed(0))
    assert compare(wanted, {name: x[order] for name, x in wanted.items()}, SIZE) == 0


def test_one_detection_may_be_missing_but_no_two() -> None:
    wanted = detections()
    assert compare(wanted, {name: x[1:] for name, x in wanted.items()}, SIZE) == 0
    with pytest.raises(ConfigError, match="2 of 10 detections"):
        compare(wanted, {name: x[2:] for name, x in wanted.items()}, SIZE)


@pytest.mark.parametrize(("name", "change"), [("boxes", 0.05), ("scores", 2e-4), ("classes", 1), ("masks", 1e-3)])
def test_other_detections_are_refused(name: str, change: float) -> None:
    wanted = detections()
    with pytest.raises(ConfigError, match=r"10 of 10 detections|'masks' of the exported file is off"):
        compare(wanted, {**wanted, name: wanted[name] + change}, SIZE)


def test_nothing_found_by_both_is_the_same() -> None:
    assert compare(detections(0), detections(0), SIZE) == 0
