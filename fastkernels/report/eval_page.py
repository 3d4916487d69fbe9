"""report.html of an eval run: deployable speedup beside the validity rate first, then MacroEval and every item."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastkernels.report.accounting import view_tolerances
from fastkernels.report.eval_figures import discrepancies, sensitivity, speedups
from fastkernels.report.eval_view import SENTENCES, ItemView, item_views, part_scores, set_scores
from fastkernels.report.html import page
from fastkernels.report.view import command
from fastkernels.scoring.policies import Headline

Json = dict[str, Any]


@dataclass(frozen=True)
class SetView:
    """One implementation set. subset: the scores of the largest part of it that works, where it broke a model; None
    otherwise. counts: items by verdict. tolerances: what is valid, by scale of the thresholds."""

    name: str
    record: Json
    score: Json
    subset: Json | None
    counts: dict[str, int]
    tolerances: dict[str, Headline]

    @property
    def scored(self) -> list[tuple[str, Json]]:
        """What MacroEval is shown of: (what it is, if not the whole set; scores)."""
        return [("", self.score), *([("without the ops at fault", self.subset)] if self.subset else [])]

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
    parts = part_scores(results)
    found = []
    for name, score in scores.items():
        of_set = [v for v in views if v.record["implementation"] == name]
        verdicts = [v.verdict for v in of_set]
        counts = {verdict: verdicts.count(verdict) for verdict in SENTENCES if verdict in verdicts}
        record = records.get(name, {"path": "", "ops": [], "sha256": ""})
        found.append(SetView(name, record, score, parts.get(name), counts, view_tolerances(of_set)))
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
