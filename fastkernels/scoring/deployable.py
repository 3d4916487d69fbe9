"""Deployable speedup: what a user gains who takes a set where it helps and is right, and the baseline elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from fastkernels.scoring.intervals import Pool, hierarchical_bounds, restart_pool
from fastkernels.scoring.items import Item
from fastkernels.scoring.macroeval import DEFAULT_BLEND, is_valid, item_interval
from fastkernels.scoring.statistics import Interval, speed_verdict

WIN, LOSS, TIE = "WIN", "LOSS", "TIE"


@dataclass(frozen=True)
class Deployable:
    """speedup: geometric mean over all items, with its 95 % interval. validity: num_valid over num_items. num_wins,
    num_losses, num_ties: of the valid ones."""

    speedup: float
    low: float
    high: float
    num_items: int
    num_valid: int
    validity: float
    num_wins: int
    num_losses: int
    num_ties: int


def item_verdict(item: Item, blend: float = DEFAULT_BLEND) -> str | None:
    """None when the item is not valid; WIN or LOSS when the whole 95 % interval lies beyond 1 + noise_floor or under
    1 / (1 + noise_floor); TIE otherwise, and where no time was taken that `blend` weighs."""
    if not is_valid(item):
        return None
    interval = item_interval(item, blend)
    return TIE if interval is None else speed_verdict(interval, item.noise_floor)


def deployable(items: Sequence[Item], blend: float = DEFAULT_BLEND) -> Deployable:
    """Wins and losses as measured, everything else at 1.0: invalid, never called, blocked and tied items.

    The interval is the hierarchical bootstrap over items, restarts and pairs, with the verdicts as they are; of two
    items it is the wider of their range and their own intervals', of one item that item's own.
    Errors: ValueError when there is no item, or blend is not in [0, 1].
    """
    counted = _counted(items, blend)
    own = [(1.0, 1.0) if interval is None else (interval.low, interval.high) for interval in counted]
    pools = [_pool(item, interval, blend) for item, interval in zip(items, counted, strict=True)]
    bounds = hierarchical_bounds(pools, own)
    verdicts = [item_verdict(item, blend) for item in items]
    num_valid = sum(verdict is not None for verdict in verdicts)
    return Deployable(
        speedup=_mean(counted),
        low=own[0][0] if bounds is None else bounds.low,
        high=own[0][1] if bounds is None else bounds.high,
        num_items=len(items),
        num_valid=num_valid,
        validity=num_valid / len(items),
        num_wins=verdicts.count(WIN),
        num_losses=verdicts.count(LOSS),
        num_ties=verdicts.count(TIE),
    )


def deployable_speedup(items: Sequence[Item], blend: float = DEFAULT_BLEND) -> float:
    """The figure alone. Errors: as deployable."""
    return _mean(_counted(items, blend))


def _counted(items: Sequence[Item], blend: float) -> list[Interval | None]:
    """The interval of each win and loss, None of what stays at 1.0."""
    if not items:
        raise ValueError("There is no item to score.")
    return [item_interval(item, blend) if item_verdict(item, blend) in (WIN, LOSS) else None for item in items]


def _mean(counted: Sequence[Interval | None]) -> float:
    return math.exp(fmean(0.0 if interval is None else math.log(interval.ratio) for interval in counted))


def _pool(item: Item, interval: Interval | None, blend: float) -> Pool:
    return np.zeros((1, 1)) if interval is None else restart_pool(item, blend)
