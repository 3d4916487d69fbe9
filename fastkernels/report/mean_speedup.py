"""Speedups with their intervals, averaged as logarithms. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

_NORMAL = 1.960


@dataclass(frozen=True)
class LogInterval:
    """A speedup as a logarithm, with the distances to the ends of its 95 % interval."""

    centre: float = 0.0
    down: float = 0.0
    up: float = 0.0

    @property
    def spread(self) -> float:
        """The standard deviation that a normal law of this interval has."""
        return (self.down + self.up) / (2 * _NORMAL)

    @property
    def ends(self) -> tuple[float, float]:
        """Of the interval, as ratios."""
        return math.exp(self.centre - self.down), math.exp(self.centre + self.up)

    def to_json(self) -> Json:
        return dict(zip(("speedup", "low", "high"), (math.exp(self.centre), *self.ends), strict=True))


def log_interval(ratio: float, low: float, high: float) -> LogInterval:
    return LogInterval(math.log(ratio), math.log(ratio / low), math.log(high / ratio))


def mean_interval(parts: Sequence[LogInterval]) -> LogInterval:
    """The geometric mean of speedups whose intervals are independent (MOVER: https://doi.org/10.1002/sim.3095)."""
    count = len(parts)
    down, up = (math.hypot(*(getattr(p, side) for p in parts)) / count for side in ("down", "up"))
    return LogInterval(sum(p.centre for p in parts) / count, down, up)


def mean_speedup(timings: Sequence[Json]) -> LogInterval | None:
    """Over an op's timed cases, each with ratio, low and high. None without one."""
    return mean_interval([timing_interval(t) for t in timings]) if timings else None


def timing_interval(timing: Json) -> LogInterval:
    return log_interval(*(timing[name] for name in ("ratio", "low", "high")))
