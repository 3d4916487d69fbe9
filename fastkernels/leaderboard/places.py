"""Where an entry stands among those it compares with: a range of ranks, and in words why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastkernels.leaderboard.metrics import Cell, Metric
from fastkernels.scoring.ranks import Figure, ranks

_MOST_NAMES = 4
"""Of entries that one is not told apart from."""


@dataclass(frozen=True)
class Place:
    """Where a row stands by one metric, as it is shown. is_close: it is not told apart from the row above it.
    why: the same in words."""

    text: str = "\u2013"
    is_close: bool = False
    why: str = ""


def places(names: Sequence[str], cells: Sequence[Cell], metric: Metric) -> list[Place]:
    """Of agents by one metric, of which each has a cell; those of one table and level."""
    found = []
    for cell, rank in zip(cells, ranks([_figure(cell, metric) for cell in cells]), strict=True):
        alike = [] if rank is None else [names[i] for i in rank.alike]
        if rank is None:
            found.append(Place(why="No figure to rank by."))
        elif not metric.has_interval:
            equal = f"; equal to {_listed(alike)}" if alike else ""
            found.append(Place(str(rank.best), why=f"Ranked by the figure alone, which has no interval{equal}."))
        else:
            found.append(Place(rank.text, rank.above is not None, _why(alike, len(names), cell.low is not None)))
    return found


def _figure(cell: Cell, metric: Metric) -> Figure | None:
    if cell.value is None:
        return None
    if not metric.has_interval:
        return Figure(cell.value, cell.value, cell.value)
    return Figure(cell.value, cell.low, cell.high)


def _why(alike: Sequence[str], num_rows: int, has_interval: bool) -> str:
    if num_rows == 1:
        return "The only entry of its table and level."
    if not has_interval:
        return "It has no interval, and is told apart from none."
    if not alike:
        return "Told apart from every other: no interval overlaps its own."
    return f"Not told apart from {_listed(alike)}: the intervals overlap."


def _listed(names: Sequence[str]) -> str:
    """At most _MOST_NAMES of them."""
    shown = list(names[:_MOST_NAMES])
    if len(names) > _MOST_NAMES:
        shown.append(f"{len(names) - _MOST_NAMES} more")
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
