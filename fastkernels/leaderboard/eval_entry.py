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
from fastkernels.scoring.scores import scores
from fastkernels.scoring.statistics import Interval

Json = dict[str, Any]

_LONGEST_MESSAGE = 400
_NAMES = ("item", "model", "architecture", "family", "dtype", "num_ranks", "outcome", "reason", "thresholds", "figures")


def eval_part(given: Submission) -> Json:
    """Errors: RunFolderError when the run does not say by which manifest, of which scenarios or of which files the
    set is, or a scenario of the run has no item with the set."""
    results = given.results
    manifest = results.get("manifest")
    if not isinstance(manifest, dict) or not {"version", "sha256"} <= manifest.keys():
        raise RunFolderError(f"{given.run} does not say by which manifest it was judged; evaluate again.")
    known = next((s for s in results["sets"] if s["name"] == given.implementation), None)
    if known is None:
        raise RunFolderError(f"{given.run}: {given.implementation} is not among the run's sets; it is damaged.")
    views = item_views(results)
    chosen = [view for view in views if view.record["implementation"] == given.implementation]
    missing = {v.record["item"] for v in views} - {v.record["item"] for v in chosen}
    missing |= {v.record["item"] for v in chosen if not v.record["is_complete"]}
    if missing:
        raise RunFolderError(
            f"{given.run} lacks {len(missing)} whole items of {given.implementation} "
            f"({', '.join(sorted(missing)[:3])}); go on with the same command and --resume."
        )
    return {
        "implementation": {"name": known["name"], "sha256": known["sha256"], "ops": known["ops"]},
        "manifest": {name: manifest[name] for name in ("version", "sha256")},
        "scenarios_sha256": given.scenarios_sha256,
        "scores": {**scores([view.item for view in chosen]), **_fast(chosen)},
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
