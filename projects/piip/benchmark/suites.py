"""The suites of cases by name; a suite is imported when it is asked for, since some take a while."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol

from ..errors import ConfigError, did_you_mean
from .records import Row
from .timing import Settings

__all__ = ["SUITES", "Case", "cases"]

# What is measured, and the modules that hold the cases.
SUITES = {
    "ops": ("SKA, deformable attention, attention", ("ops", "attention")),
    "backbones": ("PIIP and LSNet, forms and peers", ("pyramids", "backbones")),
    "detector": ("Mask R-CNN: inference and training step", ("detectors",)),
    "train": ("training steps of backbones", ("training",)),
    "data": ("images per worker", ("data_loading",)),
    "scale": ("growth with resolution, branches and batch", ("scaling",)),
    "memory": ("what fits on a GPU, on paper", ("memory",)),
}


class Case(Protocol):
    """What a suite is made of.

    Attributes:
        name: unique within the suite.
        quick: whether it is among the few cases of continuous integration.

    One that is only for ``"cpu"`` or ``"cuda"`` says so as ``device``.
    """

    name: str
    quick: bool

    def measure(self, settings: Settings) -> list[Row]:
        """The rows of the case, the one that ratios refer to first."""


def cases(suites: Sequence[str], quick: bool = False, words: Sequence[str] = (), device: str = "cpu") -> list[Case]:
    """The cases of suites for a device that have all the words in their names, all cases without any.

    Raises:
        ConfigError: for an unknown suite, or when no case is left.
    """
    for suite in suites:
        if suite not in SUITES:
            raise ConfigError(f"there is no suite {suite!r}, but {', '.join(SUITES)}.{did_you_mean(suite, SUITES)}")
    modules = [importlib.import_module(f"{__package__}.{name}") for suite in suites for name in SUITES[suite][1]]
    found = [case for module in modules for case in module.CASES if getattr(case, "device", None) in (None, device)]
    found = [case for case in found if case.quick or not quick]
    chosen = [case for case in found if all(word in case.name for word in words)]
    if not found:
        raise ConfigError(f"no case of {' and '.join(suites)} is quick enough for --quick; leave it out.")
    if not chosen:
        names = [case.name for case in found]
        raise ConfigError(f"no case has {' and '.join(map(repr, words))} in its name; there are {', '.join(names)}.")
    return chosen
