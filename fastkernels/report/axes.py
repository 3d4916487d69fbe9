"""Logarithmic axes with round ticks, and how samples are thinned for drawing. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any


def log_axis(values: Iterable[float], ladders: Sequence[Sequence[float]], unit: str = "") -> dict[str, Any]:
    """A logarithmic axis a little wider than `values`, with round ticks inside; a bare one when none is above 0."""
    known = [v for v in values if math.isfinite(v) and v > 0]
    if not known:
        return {"type": "log"}
    low, high = 0.93 * min(known), 1.07 * max(known)
    ticks = ticks_inside(low, high, ladders)
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [tick_text(tick) + unit for tick in ticks],
    }


def ticks_inside(low: float, high: float, ladders: Sequence[Sequence[float]]) -> list[float]:
    """Of the coarsest ladder that has four steps in [low, high]; else of the finest, or even steps where that has less
    than two."""
    found: list[float] = []
    for ladder in ladders:
        found = [tick for tick in ladder if low <= tick <= high]
        if len(found) >= 4:
            break
    return found if len(found) >= 2 else even_ticks(low, high)


def even_ticks(low: float, high: float) -> list[float]:
    """Multiples of the largest round step (1, 2 or 5 of a decade) that has three in [low, high], which differ."""
    decade = math.floor(math.log10(high - low))
    steps = (float(f"{m}e{e}") for e in (decade, decade - 1) for m in (5, 2, 1))
    ticks = ([n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)] for step in steps)
    return next(found for found in ticks if len(found) >= 3)


def _decades(*multiples: float) -> list[float]:
    return [float(f"{m}e{e}") for e in range(-9, 10) for m in multiples]


TIME_LADDERS = (_decades(1), _decades(1, 3), _decades(1, 2, 5), _decades(1, 1.5, 2, 3, 4, 5, 6, 8))
SHARE_LADDERS = (_decades(1),)
RATIO_LADDERS = (
    [4.0**e for e in range(-10, 11)],
    [2.0**e for e in range(-10, 11)],
    [0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8],
    [0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.35, 1.5, 1.75, 2],
    [0.85, 0.9, 0.95, 1, 1.05, 1.1, 1.15],
)


def tick_text(value: float) -> str:
    exponent = round(math.log10(value))
    if value < 0.001 and math.isclose(value, 10.0**exponent):
        return f"10<sup>\u2212{-exponent}</sup>"
    return f"{value:,.6g}" if value >= 1000 else f"{value:.4g}"


def thinned(values: Sequence[float], count: int) -> list[float]:
    """Evenly spaced ranks of `values`, ends kept; all when they are few."""
    ordered = sorted(values)
    if len(ordered) <= count:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (count - 1))] for i in range(count)]


def short(value: float) -> float:
    """Five digits are enough to draw; Plotly writes NaN and infinity as null."""
    return float(f"{value:.5g}")
