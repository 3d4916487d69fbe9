"""fast_p: the share of all targets that are right and faster than p times the baseline, beyond doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastkernels.scoring.statistics import wilson_interval

FACTORS = (0.5, 0.8, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)


@dataclass(frozen=True)
class FastP:
    """share: num_faster over num_targets, with its 95 % interval."""

    p: float
    num_faster: int
    num_targets: int
    share: float
    low: float
    high: float


def fast_p(lows: Sequence[float | None], p: float) -> FastP:
    """lows: the lower bound of each target's interval, None of one that is not right or was not measured: it counts.

    Where the published fast@p takes the point estimate, of right targets alone, noise decides at p = 1.
    Errors: ValueError when there is no target.
    """
    if not lows:
        raise ValueError("There is no target to count.")
    num_faster = sum(low is not None and low > p for low in lows)
    return FastP(p, num_faster, len(lows), num_faster / len(lows), *wilson_interval(num_faster, len(lows)))


def fast_p_curve(lows: Sequence[float | None], factors: Sequence[float] = FACTORS) -> list[FastP]:
    """Errors: ValueError when there is no target."""
    return [fast_p(lows, p) for p in factors]
