"""The published accountings of a run as terminal tables: policies for blocked targets, scales of the tolerances."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from fastkernels.cli.common import figure_table
from fastkernels.report.accounting import POLICIES, run_policies, view_tolerances
from fastkernels.report.eval_view import item_views
from fastkernels.scoring.macroeval import TOLERANCE_SCALES
from fastkernels.scoring.policies import Headline

Json = dict[str, Any]


def accounting_tables(results: Json) -> list[Table]:
    """What `report` adds to a run of kernels or of eval; nothing where nothing was judged."""
    if results["kind"] == "eval":
        return [tolerance_table(results)] if results.get("items") else []
    return [policy_table(results)] if results["kind"] == "kernels" and results["ops"] else []


def policy_table(results: Json) -> Table:
    """A row a set and scope: under each policy what passed of which targets, and the geometric mean of speedups."""
    table = figure_table("blocked targets", "level", "blocked", *POLICIES.values())
    for row in run_policies(results):
        figures = [_figures(found) for found in row.headlines.values()]
        table.add_row(escape(row.name), row.scope, str(row.num_blocked), *figures)
    return table


def tolerance_table(results: Json) -> Table:
    """A row a set: at each scale of the thresholds how many items are right, and the geometric mean of speedups."""
    table = figure_table("tolerance", *(f"x {scale:g}" for scale in TOLERANCE_SCALES))
    views = item_views(results)
    for name in dict.fromkeys(view.record["implementation"] for view in views):
        found = view_tolerances(view for view in views if view.record["implementation"] == name)
        table.add_row(escape(name), *map(_figures, found.values()))
    return table


def _figures(found: Headline) -> str:
    speedup = "-" if found.speedup is None else f"{found.speedup:.3f}"
    return f"{found.num_correct} of {found.num_targets}, {speedup}"
