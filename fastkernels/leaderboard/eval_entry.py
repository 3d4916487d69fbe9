"""What an entry holds of an eval run: its set's scores, reckoned anew, and the figures of every item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastkernels.errors import RunFolderError
from fastkernels.leaderboard.submission import Submission
from fastkernels.report.eval_view import ItemView, item_views
from fastkernels.report.view import headline
from fastkernels.scoring.fast_p import fast_p
from fastkernels.scoring.scores import scores, subset_scores
from fastkernels.scoring.statistics import Interval

Json = dict[str, Any]

_LONGEST_MESSAGE = 400
_NAMES = ("item", "model", "architecture", "family", "dtype", "num_ranks", "outcome", "reason", "thresholds", "figures")


def eval_part(given: Submission) -> Json:
    """Errors: RunFolderError when the run does not say of which files the set is, was judged by another manifest than
    this program's, or is of other scenarios than their name says, or does not hold what they ask for (eval_checks)."""
    from fastkernels.leaderboard import eval_checks as checks  # with torch, which no build needs

    results = given.results
    manifest, scenarios = checks.manifest_of(given.run, results), checks.scenarios_of(given.run, results)
    checks.check_shipped(given.run, scenarios, results["request"].get("model"))
    known = next((s for s in results.get("sets", []) if s["name"] == given.implementation), None)
    if known is None:
        raise RunFolderError(f"{given.run}: {given.implementation} is not among the run's sets; it is damaged.")
    records = [record for record in results["items"] if record["implementation"] == given.implementation]
    checks.check_items(given.run, scenarios, given.implementation, records)
    checks.check_judged(given.run, scenarios, manifest, records)
    checks.check_samples(given.run, scenarios, records)
    chosen = item_views({**results, "items": records})
    return {
        "implementation": {"name": known["name"], "sha256": known["sha256"], "ops": known["ops"]},
        "manifest": {"version": manifest.version, "sha256": manifest.sha256},
        "scenarios_sha256": given.scenarios_sha256,
        "scores": {**scores([view.item for view in chosen]), **_fast(chosen)},
        "subset_scores": subset_scores({**results, "items": records}).get(given.implementation),
        "items": [_item(view) for view in chosen],
    }


def _fast(views: Sequence[ItemView]) -> Json:
    lows = item_lower_bounds([_item(view) for view in views])
    return {"fast_1": asdict(fast_p(lows, 1.0))}


def item_lower_bounds(items: Sequence[Json]) -> list[float | None]:
    """Of every item's interval, for fast_p; None of one that is not valid or was not timed."""
    return [i["speedup"]["low"] if i["verdict"] == "VALID" and i["speedup"] else None for i in items]


def _item(view: ItemView) -> Json:
    subset = view.record["subset"]
    return {
        **{name: view.record[name] for name in _NAMES},
        "message": headline(view.record["message"])[:_LONGEST_MESSAGE],
        "verdict": view.verdict,
        "correctness": view.correctness,
        "worst_discrepancy": view.worst,
        "speed": view.speed,
        "speedup": _interval(view.speedup),
        "throughput": _interval(view.throughput),
        "latency": _interval(view.latency),
        "noise_floor": view.item.noise_floor,
        "replaced": [asdict(op) for op in view.replaced],
        "at_fault": {} if subset is None else {op: headline(why) for op, why in subset["at_fault"].items()},
        "kept": [] if subset is None else subset["kept"],
        "subset": _item(view.subset) if view.subset else None,
    }


def _interval(found: Interval | None) -> Json | None:
    return None if found is None else asdict(found)
