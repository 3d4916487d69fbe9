"""Ranks of entries whose figures have intervals: a range where intervals overlap, as Chatbot Arena shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """What an entry is ranked by. low, high: its interval; None of what has none, which is told apart from nothing.

    Errors: ValueError when a bound is missing or NaN, or they are the wrong way round.
    """

    value: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if math.isnan(self.value) or not self.bounds[0] <= self.bounds[1] or (self.low is None) != (self.high is None):
            raise ValueError(f"A figure has a value and two bounds that rise, or none; got {self}.")

    @property
    def bounds(self) -> tuple[float, float]:
        return (
            -math.inf if self.low is None else self.low,
            math.inf if self.high is None else self.high,
        )

    def is_apart(self, other: Figure) -> bool:
        """Whether the intervals have no point in common."""
        return self.bounds[0] > other.bounds[1] or other.bounds[0] > self.bounds[1]


@dataclass(frozen=True)
class Rank:
    """best: one more than there are entries whose interval lies wholly above; worst: the number of entries less those
    whose interval lies wholly below. alike: indices of the others that it is not told apart from, the largest value
    first. above: the one of the entry directly above it by value where that is among them, else None."""

    best: int
    worst: int
    alike: tuple[int, ...] = ()
    above: int | None = None

    @property
    def text(self) -> str:
        return str(self.best) if self.best == self.worst else f"{self.best}\u2013{self.worst}"


def ranks(figures: Sequence[Figure | None]) -> list[Rank | None]:
    """Of each figure among all; None of what has none. Equal values keep their order."""
    known = {i: figure for i, figure in enumerate(figures) if figure is not None}
    order = sorted(known, key=lambda i: -known[i].value)
    found: dict[int, Rank] = {}
    for place, i in enumerate(order):
        mine = known[i]
        alike = tuple(j for j in order if j != i and not mine.is_apart(known[j]))
        num_above = sum(known[j].bounds[0] > mine.bounds[1] for j in order)
        num_below = sum(known[j].bounds[1] < mine.bounds[0] for j in order)
        before = order[place - 1] if place else None
        found[i] = Rank(1 + num_above, len(order) - num_below, alike, before if before in alike else None)
    return [found.get(i) for i in range(len(figures))]
