"""From an eval run's results.json to items, and from items to every score: plain data both ways."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

from fastkernels.scoring.deployable import deployable, deployable_speedup, item_verdict
from fastkernels.scoring.intervals import macro_intervals
from fastkernels.scoring.items import Item, Outcome, Restarts, Thresholds
from fastkernels.scoring.macroeval import (
    BLENDS,
    DEFAULT_BLEND,
    TOLERANCE_SCALES,
    item_correctness,
    item_interval,
    item_speedup,
    macroeval,
    with_thresholds_scaled,
)
from fastkernels.scoring.statistics import noise_floor, percentile, ratio_interval

READS_SCHEMA_VERSION = 1
"""eval_schema_version of the runs that are read (bench/eval/records.py)."""

LEAST_NOISE = 0.01
"""The smallest noise floor of a whole model: two passes of it never count as unlike by less."""

_WORTHLESS = Thresholds(0.0, 1.0)
"""Of an item that was not measured; no answer is held against them."""


def items_of(results: Mapping[str, Any]) -> dict[str, list[Item]]:
    """By implementation set, in the run's order.

    The i-th pass (or request) of the reference is paired with the i-th of the candidate in the same restart. Several
    workloads of one kind have equal weight in a restart: each gives as many values as the shortest has pairs (evenly
    spaced quantiles of its log ratios), moved so that its median is the mean of the workloads' medians; so the median
    of all is their geometric mean, and not that of the workload with the most passes.
    Errors: ValueError when the run is not an eval run of the version that is read, or a record is inconsistent.
    """
    _check_version(results)
    return _by_set(results.get("items", []))


def subset_items_of(results: Mapping[str, Any]) -> dict[str, list[Item]]:
    """As items_of, with each set in the largest part that can be deployed: where the whole set broke a model and a part
    of it was measured in its place, that part's item. Only of sets that have such a part."""
    _check_version(results)
    found = [record for record in results.get("items", []) if _part(record) is not None]
    sets = {record["implementation"] for record in found}
    return _by_set([_part(r) or r for r in results.get("items", []) if r["implementation"] in sets])


def subset_scores(results: Mapping[str, Any]) -> dict[str, Any]:
    """`scores` of subset_items_of, by set. Errors: as items_of."""
    return {name: scores(items) for name, items in subset_items_of(results).items()}


def scores(items: Sequence[Item]) -> dict[str, Any]:
    """{"deployable", "macroeval": by lambda, "intervals": {"macro", "families", "items"}, "sensitivity": by scale}.

    intervals and sensitivity are at the default lambda. Plain JSON; what could not be measured is None.
    Errors: ValueError when there is no item.
    """
    macro, families = macro_intervals(items)
    return {
        "deployable": {"blend": DEFAULT_BLEND, **asdict(deployable(items))},
        "macroeval": {str(blend): asdict(macroeval(items, blend)) for blend in BLENDS},
        "intervals": {
            "blend": DEFAULT_BLEND,
            "macro": asdict(macro),
            "families": {name: asdict(bounds) for name, bounds in families.items()},
            "items": [_item_row(item) for item in items],
        },
        "sensitivity": {str(scale): sensitivity(items, scale) for scale in TOLERANCE_SCALES},
    }


def _item_row(item: Item) -> dict[str, Any]:
    interval = item_interval(item)
    return {
        "item": item.name,
        "family": str(item.family),
        "outcome": str(item.outcome),
        "correctness": item_correctness(item),
        "verdict": item_verdict(item),
        "interval": None if interval is None else asdict(interval),
        "noise_floor": item.noise_floor,
        "speedup": {str(blend): item_speedup(item, blend) for blend in BLENDS},
    }


def sensitivity(items: Sequence[Item], scale: float) -> dict[str, Any]:
    """The default scores with every threshold times `scale`: how far a ranking hangs on them."""
    scaled = with_thresholds_scaled(items, scale)
    published = {key: value for key, value in asdict(macroeval(scaled)).items() if key != "families"}
    return {"deployable": deployable_speedup(scaled), **published}


def _check_version(results: Mapping[str, Any]) -> None:
    kind, version = results.get("kind"), results.get("eval_schema_version")
    if kind != "eval" or version != READS_SCHEMA_VERSION:
        raise ValueError(
            f"Run {results.get('run_id')!r} is of kind {kind!r}, eval schema version {version!r}; this program scores "
            f"runs of kind 'eval', version {READS_SCHEMA_VERSION}."
        )


def _part(record: Mapping[str, Any]) -> dict[str, Any] | None:
    subset = record.get("subset")
    return None if subset is None else subset["item"]


def _by_set(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Item]]:
    sets: dict[str, list[Item]] = defaultdict(list)
    for record in records:
        sets[record["implementation"]].append(_item(record))
    return dict(sets)


def _item(record: Mapping[str, Any]) -> Item:
    outcome = Outcome(record["outcome"])
    if outcome is not Outcome.MEASURED:
        thresholds = Thresholds(**record["thresholds"]) if record["thresholds"] else _WORTHLESS
        return Item(record["item"], record["family"], outcome, thresholds)
    if not record["thresholds"]:
        raise ValueError(f"Item {record['item']!r} of {record['implementation']!r} is MEASURED and has no thresholds.")
    return Item(
        name=record["item"],
        family=record["family"],
        outcome=outcome,
        thresholds=Thresholds(**record["thresholds"]),
        discrepancies=tuple(record["discrepancies"]),
        throughput=_restarts(record, "throughput"),
        latency=_restarts(record, "latency"),
        noise_floor=_noise_floor(record["reference_noise"]),
    )


def _noise_floor(log_ratios: Sequence[float]) -> float:
    return noise_floor(ratio_interval([log_ratios]), LEAST_NOISE) if log_ratios else LEAST_NOISE


def _restarts(record: Mapping[str, Any], kind: str) -> Restarts:
    """One tuple for each restart of the item, in order; empty where it had no workload of this kind."""
    found: dict[int, list[list[float]]] = {number: [] for number in sorted(p["restart"] for p in record["passes"])}
    for measured in record["passes"]:
        if measured["kind"] not in ("throughput", "latency"):
            raise ValueError(f"{_place(record, measured)} is of kind {measured['kind']!r}: throughput or latency.")
        if measured["kind"] == kind:
            found[measured["restart"]].append(_log_ratios(record, measured))
    return tuple(tuple(_together(workloads)) for workloads in found.values())


def _log_ratios(record: Mapping[str, Any], measured: Mapping[str, Any]) -> list[float]:
    """log(reference seconds / candidate seconds) of each pair."""
    reference, candidate = measured["reference_s"], measured["candidate_s"]
    if len(reference) != len(candidate) or not reference:
        raise ValueError(
            f"{_place(record, measured)} has {len(reference)} times of the reference and {len(candidate)} of the "
            "candidate; they are paired."
        )
    wrong = [seconds for seconds in (*reference, *candidate) if not 0 < seconds < math.inf]
    if wrong:
        raise ValueError(f"{_place(record, measured)} has a time of {wrong[0]} s; it is over 0 and finite.")
    return [math.log(expected / given) for expected, given in zip(reference, candidate, strict=True)]


def _together(workloads: Sequence[Sequence[float]]) -> list[float]:
    """The pairs of one workload as they are; of several, see items_of."""
    if len(workloads) < 2:
        return [value for pairs in workloads for value in pairs]
    count = min(map(len, workloads))
    even = [[percentile(pairs, (i + 0.5) / count) for i in range(count)] for pairs in workloads]
    centre = fmean(map(median, workloads))
    return [value - median(values) + centre for values in even for value in values]


def _place(record: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    return f"Workload {measured['workload']!r} of item {record['item']!r}, restart {measured['restart']},"
