"""compare.html: what changed from one run to another."""

from __future__ import annotations

from collections import Counter
from typing import Any

import plotly.graph_objects as go

from fastkernels.report.axes import RATIO_LADDERS, log_axis, short
from fastkernels.report.compare import Change, Comparison, hardware
from fastkernels.report.e2e_compare import E2EComparison
from fastkernels.report.eval_view import SENTENCES
from fastkernels.report.figures import ROW, TIMES, Rows, finished, light, plain
from fastkernels.report.html import page

_STYLE = {"faster": ("win", "triangle-right"), "same": ("tie", "circle"), "slower": ("loss", "triangle-left")}


def render_comparison(comparison: Comparison) -> str:
    counts = Counter(change.change for change in comparison.changes)
    return page(
        "compare.html",
        {"changes": _forest([c for c in comparison.changes if c.ratio is not None])},
        before=comparison.before,
        after=comparison.after,
        hardware=hardware(comparison.after),
        warnings=comparison.warnings,
        changes=comparison.changes,
        counts=dict(counts.most_common()),
        is_eval=comparison.after["kind"] == "eval",
        sentences=SENTENCES,
    )


def render_e2e_comparison(comparison: E2EComparison) -> str:
    counts = Counter(change.change for change in comparison.changes)
    return page(
        "e2e_compare.html",
        {},
        before=comparison.before,
        after=comparison.after,
        workload=comparison.after.get("workload"),
        hardware=hardware(comparison.after),
        warnings=comparison.warnings,
        changes=comparison.changes,
        equal_outputs=comparison.equal_outputs,
        counts=dict(counts.most_common()),
        number=significant,
    )


def significant(value: float | None) -> str:
    """Four digits, and all of those before the point; a dash for None."""
    if value is None:
        return "\u2013"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _forest(changes: list[Change]) -> dict[str, Any] | None:
    if not changes:
        return None
    figure = go.Figure()
    for kind, (colour, symbol) in _STYLE.items():
        chosen = [(i, c) for i, c in enumerate(changes) if c.change == kind]
        if chosen:
            figure.add_trace(_intervals(chosen, light(colour), symbol, kind))
    figure.add_vline(x=1, line_color=light("line"), line_width=1.5)
    axis = log_axis([*(v for c in changes for v in (c.low, c.high) if v), 0.92, 1.08], RATIO_LADDERS, TIMES)
    figure.update_xaxes(title="speedup, second run over first (log)", **axis)
    labels = [f"<b>{plain(c.op)}</b> · {plain(c.implementation)}" for c in changes]
    brief = [plain(f"{c.op} · {c.implementation}"[:30]) for c in changes]
    notes = [(f"{c.ratio:.2f}{TIMES} [{c.low:.2f}, {c.high:.2f}]", f"{c.ratio:.2f}{TIMES}") for c in changes]
    return finished(figure, Rows(labels, brief, notes, ROW, 0.3))


def _intervals(chosen: list[tuple[int, Change]], colour: str, symbol: str, name: str) -> go.Scatter:
    figures = [(c.ratio or 1.0, c.low or 1.0, c.high or 1.0) for _, c in chosen]
    return go.Scatter(
        x=[short(ratio) for ratio, _, _ in figures],
        y=[i for i, _ in chosen],
        error_x={
            "type": "data",
            "array": [short(high - ratio) for ratio, _, high in figures],
            "arrayminus": [short(ratio - low) for ratio, low, _ in figures],
            "color": colour,
            "thickness": 2,
            "width": 5,
        },
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 12},
        name=name,
    )
