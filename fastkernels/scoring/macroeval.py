"""MacroEval as published (equations 2 to 11): calibrated correctness, coverage and speedup, families weighted alike.

Source: section 5 and appendix C of the FastKernels paper.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean

from fastkernels.scoring.items import Item, Outcome, Restarts, Thresholds
from fastkernels.scoring.statistics import Interval, blended_interval, blended_log_ratio

BLENDS = (0.0, 0.5, 1.0)
"""Lambda of latency alone, of both (the default) and of throughput alone."""
DEFAULT_BLEND = 0.5
TOLERANCE_SCALES = (0.25, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class FamilyScore:
    """correctness: C_f. speedup: S_f, None when no item is valid and timed."""

    correctness: float
    num_items: int
    num_valid: int
    speedup: float | None


@dataclass(frozen=True)
class MacroEval:
    """blend: lambda. correctness: C_macro. coverage: over items; coverage_macro: the mean of the families'. speedup:
    S_macro, None when no family has one. score: speedup * correctness * coverage_macro, 0 then. families: by name."""

    blend: float
    correctness: float
    coverage: float
    coverage_macro: float
    speedup: float | None
    score: float
    families: Mapping[str, FamilyScore]


def macroeval(items: Sequence[Item], blend: float = DEFAULT_BLEND) -> MacroEval:
    """Errors: ValueError when there is no item, or blend is not in [0, 1]."""
    if not items:
        raise ValueError("There is no item to score.")
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.family].append(item)
    families = {name: _family_score(groups[name], blend) for name in sorted(groups)}
    correctness = fmean(f.correctness for f in families.values())
    coverage_macro = fmean(f.num_valid / f.num_items for f in families.values())
    logs = [math.log(f.speedup) for f in families.values() if f.speedup is not None]
    speedup = math.exp(fmean(logs)) if logs else None
    return MacroEval(
        blend=blend,
        correctness=correctness,
        coverage=sum(f.num_valid for f in families.values()) / len(items),
        coverage_macro=coverage_macro,
        speedup=speedup,
        score=0.0 if speedup is None else speedup * correctness * coverage_macro,
        families=families,
    )


def _family_score(items: Sequence[Item], blend: float) -> FamilyScore:
    valid = [item for item in items if is_valid(item)]
    logs = [log for item in valid if (log := log_speedup(item, blend)) is not None]
    return FamilyScore(
        correctness=fmean(map(item_correctness, items)),
        num_items=len(items),
        num_valid=len(valid),
        speedup=math.exp(fmean(logs)) if logs else None,
    )


def calibrated(discrepancy: float, thresholds: Thresholds) -> float:
    """Equation 2: 1 up to `good`, 0 from `bad` on, a straight line between. NaN is 0."""
    good, bad = thresholds.good, thresholds.bad
    if discrepancy <= good:
        return 1.0
    return (bad - discrepancy) / (bad - good) if discrepancy < bad else 0.0


def item_correctness(item: Item) -> float:
    """C_i; 0 of an item that was not measured, or that no answer was compared of."""
    if item.outcome != Outcome.MEASURED or not item.discrepancies:
        return 0.0
    return fmean(calibrated(discrepancy, item.thresholds) for discrepancy in item.discrepancies)


def is_valid(item: Item) -> bool:
    """Equation 5. What crashed, hung, had the wrong form, was never called or was blocked is not."""
    return item.outcome == Outcome.MEASURED and item_correctness(item) >= item.thresholds.tau


def item_speedup(item: Item, blend: float = DEFAULT_BLEND) -> float | None:
    """Equation 8, of restarts' medians; None where it was not measured, or a kind of workload that `blend` weighs was
    not. It says nothing of validity."""
    log = log_speedup(item, blend)
    return None if log is None else math.exp(log)


def log_speedup(item: Item, blend: float = DEFAULT_BLEND) -> float | None:
    """The logarithm of item_speedup."""
    return blended_log_ratio(parts(item, blend)) if item.outcome == Outcome.MEASURED else None


def item_interval(item: Item, blend: float = DEFAULT_BLEND) -> Interval | None:
    """item_speedup with its 95 % interval over restarts."""
    return None if log_speedup(item, blend) is None else _interval(tuple(parts(item, blend)))


@lru_cache(maxsize=4096)
def _interval(weighted: tuple[tuple[float, Restarts], ...]) -> Interval:
    """Kept: of one restart alone it takes thousands of resamples, and several scores ask for it."""
    return blended_interval(weighted)


def parts(item: Item, blend: float) -> list[tuple[float, Restarts]]:
    """The kinds of workload with their weights. Errors: ValueError when blend is not in [0, 1]."""
    if not 0 <= blend <= 1:
        raise ValueError(f"The blend (lambda) is {blend}; it is from 0 (latency) to 1 (throughput).")
    weighted = [(blend, item.throughput), (1 - blend, item.latency)]
    return [(weight, restarts) for weight, restarts in weighted if weight]


def with_thresholds_scaled(items: Sequence[Item], scale: float) -> list[Item]:
    """`good` and `bad` of each item times `scale`: looser over 1. Errors: ValueError when scale is not positive."""
    if not scale > 0:
        raise ValueError(f"The scale of thresholds is {scale}; it is over 0.")
    return [
        replace(
            item,
            thresholds=replace(item.thresholds, good=scale * item.thresholds.good, bad=scale * item.thresholds.bad),
        )
        for item in items
    ]
