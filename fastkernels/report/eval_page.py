"""report.html of an eval run: deployable speedup beside the validity rate first, then MacroEval and every item."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastkernels.report.eval_figures import discrepancies, sensitivity, speedups
from fastkernels.report.eval_view import SENTENCES, ItemView, item_views, set_scores
from fastkernels.report.html import page
from fastkernels.report.view import command
from fastkernels.scoring.deployable import deployable
from fastkernels.scoring.scores import subset_items_of

Json = dict[str, Any]


@dataclass(frozen=True)
class SetView:
    """One implementation set. subset: deployable speedup with the largest part of it that works, where it broke a
    model; None otherwise. counts: items by verdict."""

    name: str
    record: Json
    score: Json
    subset: Json | None
    counts: dict[str, int]

    @property
    def families(self) -> dict[str, Json]:
        found: dict[str, Json] = self.score["macroeval"]["0.5"]["families"]
        return found


def render_eval(results: Json) -> str:
    """The page of a run, finished or not."""
    views = item_views(results)
    scores = set_scores(results)
    return page(
        "eval.html",
        {
            "speedups": speedups(views),
            "discrepancies": discrepancies(views),
            "sensitivity": sensitivity(scores),
        },
        results=results,
        sets=set_views(results, views, scores),
        items=list(zip(anchors(views), views, strict=True)),
        verdicts=[(verdict, text) for verdict, text in SENTENCES.items() if any(v.verdict == verdict for v in views)],
        command=command(results),
        bound=_bound,
    )


def set_views(results: Json, views: Sequence[ItemView], scores: dict[str, Json]) -> list[SetView]:
    """In the order of the run."""
    records = {record["name"]: record for record in results.get("sets", [])}
    parts = subset_items_of(results) if views else {}
    found = []
    for name, score in scores.items():
        verdicts = [v.verdict for v in views if v.record["implementation"] == name]
        subset = asdict(deployable(parts[name])) if name in parts else None
        counts = {verdict: verdicts.count(verdict) for verdict in SENTENCES if verdict in verdicts}
        found.append(SetView(name, records.get(name, {"path": "", "ops": [], "sha256": ""}), score, subset, counts))
    return found


def anchors(views: Sequence[ItemView]) -> list[str]:
    """`item-set`, fit for a link; numbered where two would be one."""
    found: list[str] = []
    for view in views:
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{view.record['item']}-{view.record['implementation']}")
        number = sum(anchor == stem or anchor.startswith(f"{stem}~") for anchor in found)
        found.append(f"{stem}~{number + 1}" if number else stem)
    return found


def _bound(intervals: Json | None, kind: str = "hierarchical") -> str:
    """ "[0.980, 1.041]", or nothing where there is none."""
    found = (intervals or {}).get(kind)
    return f"[{found['low']:.3f}, {found['high']:.3f}]" if found else ""
