"""From ``key=a,b other=0:3`` to the overrides of every training of a sweep."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from ..errors import ConfigError

__all__ = ["expand", "tag"]


def expand(sweeps: Sequence[str]) -> list[tuple[str, ...]]:
    """All combinations of the values.

    Args:
        sweeps: ``key=a,b,c`` (Hydra's grammar: also ``range(...)`` and ``choice(...)``), or ``key=0:3`` for the whole
            numbers from 0 below 3.

    Returns:
        for each training its overrides; one training without any where ``sweeps`` is empty.

    Raises:
        ConfigError: for text that cannot be read, or a key that is named twice.
    """
    choices = {}
    for text in sweeps:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--sweep {text!r} must be key=value,value,... or key=first:end.")
        if key in choices:
            raise ConfigError(f"--sweep names {key!r} twice; list all its values at once.")
        choices[key] = [f"{key}={v}" for v in _values(text, value)]
        if len(set(choices[key])) < len(choices[key]):
            raise ConfigError(f"--sweep {text!r} lists a value twice.")
    return list(itertools.product(*choices.values()))


def _values(text: str, value: str) -> list[str]:
    if numbers := re.fullmatch(r"(-?\d+):(-?\d+)", value):
        first, end = map(int, numbers.groups())
        if first >= end:
            raise ConfigError(f"--sweep {text!r} is an empty range; write key=first:end with first < end.")
        return [str(n) for n in range(first, end)]
    try:
        override = OverridesParser.create().parse_override(text)
        return list(override.sweep_string_iterator()) if override.is_sweep_override() else [value]
    except HydraException as error:
        raise ConfigError(f"--sweep {text!r} cannot be read: {str(error).strip().splitlines()[0]}") from error


def tag(overrides: Sequence[str], limit: int = 80) -> str:
    """A short name made of overrides, fit for folders and jobs: ``lr_1e-4-seed_0``."""
    parts = []
    for override in overrides:
        key, _, value = override.partition("=")
        parts.append(f"{key.rpartition('.')[2]}_{value}")
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts))[:limit].strip("_")
