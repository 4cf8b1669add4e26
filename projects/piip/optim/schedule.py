"""Learning-rate schedules that fvcore lacks."""

from __future__ import annotations

from fvcore.common.param_scheduler import ParamScheduler

from ..errors import ConfigError

__all__ = ["PolynomialDecay"]


class PolynomialDecay(ParamScheduler):
    """Falls from 1 to ``end_value`` along a power of what is left of the training.

    fvcore's ``PolynomialDecayParamScheduler`` always falls to 0.

    Args:
        power: 1 gives a straight line.
        end_value: the factor at the end; a lowest rate divided by the optimizer's.

    Raises:
        ConfigError: for a power that is not positive, or an end outside [0, 1].
    """

    def __init__(self, power: float = 0.9, end_value: float = 0.0) -> None:
        if not power > 0 or not 0 <= end_value <= 1:
            raise ConfigError(f"PolynomialDecay needs power > 0 and 0 <= end_value <= 1, not {power} and {end_value}.")
        self._power, self._end = power, end_value

    def __call__(self, where: float) -> float:
        return self._end + (1 - self._end) * (1 - where) ** self._power
