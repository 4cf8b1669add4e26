"""Taking the arguments of a released class out of a config, where a wrong one is told with its place and a remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from ..errors import ConfigError, did_you_mean

__all__ = [
    "Arguments",
    "flag",
    "integer",
    "integers",
    "mapping",
    "one_of",
    "per_block",
    "positive",
    "ranges",
    "rate",
    "scale",
    "text",
]

# What a check says of a value: the kind of value to give instead, or nothing if it can be used.
Check = Callable[[Any], str]

_REQUIRED = object()


class Arguments:
    """The arguments of a released class or branch, which are taken out one after the other; none may be left over.

    Args:
        owner: whose arguments these are, for messages.
        values: the arguments by name.

    Attributes:
        owner: as above.
        given: all the arguments, also those taken out.

    Raises:
        ConfigError: when they are not arguments by name.
    """

    def __init__(self, owner: str, values: Mapping[str, Any]) -> None:
        if wanted := mapping(values):
            raise ConfigError(f"the arguments of {owner} are {values!r}; give {wanted}.")
        self.owner, self.given = owner, values
        self._left, self._known = dict(values), set()

    def take(self, *names: str, check: Check, default: Any = _REQUIRED) -> Any:
        """Takes out one argument, which may go by several names.

        Raises:
            ConfigError: when it is missing and has no default, cannot be used, or is given twice and differently.
        """
        given = {name: self._left.pop(name) for name in names if name in self._left}
        self._known.update(names)
        for name, value in given.items():
            if wanted := check(value):
                raise self.wrong(name, value, f"give {wanted}")
        values = list(given.values())
        if not values and default is _REQUIRED:
            raise ConfigError(f"{self.owner} has no {' or '.join(names)}; add it to {sorted(map(str, self._left))}.")
        if any(value != values[0] for value in values):
            raise ConfigError(f"{self.owner}: {given} contradict each other; leave out one of them.")
        return values[0] if values else default

    def put(self, name: str, value: Any) -> None:
        """Puts an argument back, with the value that the released class uses instead of the given one."""
        self._left[name] = value

    def finish(self, without_effect: Collection[str], fixed: Mapping[str, Any]) -> None:
        """Refuses what is left.

        Args:
            without_effect: arguments that may have any value.
            fixed: arguments that may be left out or have this value.

        Raises:
            ConfigError: for an unknown argument, or another value than the fixed one.
        """
        known = {*self._known, *without_effect, *fixed}
        if unknown := sorted(map(str, set(self._left) - known)):
            hints = "".join(did_you_mean(name, known - set(self.given)) for name in unknown)
            raise ConfigError(
                f"arguments {unknown} of {self.owner} are unknown; known configs do not have them, so leave them out."
                f"{hints}"
            )
        for name in sorted(self._left.keys() & fixed.keys()):
            if self._left[name] != fixed[name]:
                raise self.wrong(name, self._left[name], f"released models have {fixed[name]!r}")

    def build(self, make: Callable[..., Any], **options: Any) -> Any:
        """Makes a branch, whose own errors then tell whose arguments they are about."""
        try:
            return make(**options)
        except ConfigError as error:
            raise ConfigError(f"{self.owner}: {error}") from error

    def wrong(self, name: str, value: object, remedy: str) -> ConfigError:
        """The error for an argument with a value that cannot be used."""
        end = "" if remedy.endswith("?") else "."
        return ConfigError(f"{self.owner}: {name}={value!r} is not supported; {remedy}{end}")


def integer(value: object) -> str:
    """Sizes and counts."""
    return "" if _is(value, int) and value > 0 else "a whole number above 0"


def positive(value: object) -> str:
    """Ratios and initial values."""
    return "" if _is(value, int | float) and 0 < value < math.inf else "a number above 0"


def scale(value: object) -> str:
    """Initial values of which there may be none."""
    return "" if value is None or value == 0 or not positive(value) else "a number of at least 0, or None"


def rate(value: object) -> str:
    """Rates of stochastic depth."""
    return "" if _is(value, int | float) and 0 <= value < 1 else "a number of at least 0 and below 1"


def flag(value: object) -> str:
    """Switches."""
    return "" if isinstance(value, bool) else "True or False"


def text(value: object) -> str:
    """Names and paths, which may be missing."""
    return "" if value is None or isinstance(value, str) else "a string or None"


def mapping(value: object) -> str:
    """The arguments of a branch."""
    return "" if isinstance(value, Mapping) else "a dict of arguments"


def integers(value: object) -> str:
    """Lists of steps or strides."""
    return "" if _is_list(value) and all(_is(i, int) for i in value) else "a list of whole numbers"


def ranges(value: object) -> str:
    """Blocks that run together."""
    if _is_list(value) and all(_is_list(pair) and len(pair) == 2 and all(_is(i, int) for i in pair) for pair in value):
        return ""
    return "a list of [first, last] block ranges, one for every interaction"


def per_block(depth: int, kind: type) -> Check:
    """A check for one value of a type, or a list with one for every block."""

    def check(value: object) -> str:
        values = value if _is_list(value) else [value] * depth
        if len(values) == depth and all(type(v) is kind for v in values):
            return ""
        return f"one {kind.__name__}, or a list of one for each of the {depth} blocks"

    return check


def one_of(known: Iterable[str]) -> Check:
    """A check for a name among the known ones."""
    known = sorted(known)

    def check(value: object) -> str:
        if isinstance(value, str) and value in known:
            return ""
        hint = did_you_mean(str(value), known)
        return f"one of {known}" + (f".{hint}" if hint else "")

    return check


def _is(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
