"""Plots of an eval run: speedups of whole models, discrepancies between noise and unusable, and the tolerance sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from fastkernels.report.axes import RATIO_LADDERS, log_axis, short, thinned
from fastkernels.report.eval_view import ItemView
from fastkernels.report.figures import TIMES, Rows, add_bands, finished, finished_curves, light, plain
from fastkernels.scoring.statistics import Interval

Json = dict[str, Any]

MOST_REQUESTS = 60
"""Drawn discrepancies of an item; the largest is always among them."""
FARTHEST = 1.4
"""Discrepancies beyond this are drawn here, in units of the way from good to bad."""

_ROW = 56
_SECOND_LINE = 26
"""Pixels: six names of marks take two lines on a narrow screen."""
_STYLES = {
    "WIN": ("win", "triangle-right", "WIN"),
    "TIE": ("tie", "circle", "TIE"),
    "LOSS": ("loss", "triangle-left", "LOSS"),
    "": ("loss", "x", "not valid"),
}
_KINDS = (("throughput", "line", "triangle-up-open", -0.24), ("latency", "line", "square-open", 0.24))


def speedups(views: Sequence[ItemView]) -> Json | None:
    """One row an item: the blended speedup, and throughput and latency beside it. None when nothing was timed."""
    rows = [view for view in views if view.speedup is not None]
    if not rows:
        return None
    figure = go.Figure()
    for speed, (colour, symbol, name) in _STYLES.items():
        chosen = [(i, v.speedup) for i, v in enumerate(rows) if v.speed == speed and v.speedup]
        if chosen:
            figure.add_trace(_intervals(chosen, light(colour), symbol, name, 12))
    for key, colour, symbol, offset in _KINDS:
        found = [(i + offset, interval) for i, v in enumerate(rows) if (interval := getattr(v, key)) is not None]
        if found:
            figure.add_trace(_intervals(found, light(colour), symbol, key, 8))
    add_bands(figure, [view.item.noise_floor for view in rows], 0.38)
    figure.add_vline(x=1, line_color=light("line"), line_width=1.5)
    drawn = [interval for v in rows for interval in (v.speedup, v.throughput, v.latency) if interval]
    axis = log_axis([0.92, 1.08, *(x for i in drawn for x in (i.low, i.high))], RATIO_LADDERS, TIMES)
    figure.update_xaxes(title="speedup over the reference (log)", **axis)
    notes = [_note(v.speedup) for v in rows if v.speedup]
    drawing = finished(figure, Rows([_label(v) for v in rows], [_short(v) for v in rows], notes, _ROW, 0.38))
    drawing["layout"]["margin"]["t"] += _SECOND_LINE
    drawing["layout"]["height"] += _SECOND_LINE
    return drawing


def _intervals(chosen: Sequence[tuple[float, Interval]], colour: str, symbol: str, name: str, size: int) -> go.Scatter:
    found = [interval for _, interval in chosen]
    return go.Scatter(
        x=[short(i.ratio) for i in found],
        y=[y for y, _ in chosen],
        error_x={
            "type": "data",
            "array": [short(max(0.0, i.high - i.ratio)) for i in found],
            "arrayminus": [short(max(0.0, i.ratio - i.low)) for i in found],
            "color": colour,
            "thickness": 2 if size > 8 else 1,
            "width": 5 if size > 8 else 3,
        },
        customdata=[[short(i.low), short(i.high), i.num_pairs] for i in found],
        hovertemplate="%{x:.3f}" + TIMES + " [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<br>%{customdata[2]} pairs"
        "<extra>" + name + "</extra>",
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": size},
        name=name,
    )  # fmt: skip


def _note(interval: Interval) -> tuple[str, str]:
    ratio = f"{interval.ratio:.2f}{TIMES}"
    return f"{ratio} [{interval.low:.2f}, {interval.high:.2f}]", ratio


def _label(view: ItemView) -> str:
    about = plain(f"{view.record['family']} · {view.record['implementation']}")
    return f'<b>{plain(view.record["item"][:34])}</b><br><span style="font-size:11px">{about[:60]}</span>'


def _short(view: ItemView) -> str:
    return plain(f"{view.record['item']} · {view.record['implementation']}"[:36])


def discrepancies(views: Sequence[ItemView]) -> Json | None:
    """Each request's discrepancy on the way from the family's good (0) to its bad (1). None when none was compared."""
    rows = [view for view in views if view.item.discrepancies]
    if not rows:
        return None
    figure = go.Figure()
    for is_valid, colour, symbol, name in ((True, "win", "circle-open", "valid"), (False, "loss", "x", "not valid")):
        x: list[float] = []
        y: list[float] = []
        for i, view in enumerate(rows):
            if view.is_valid == is_valid:
                places = [place(view, d) for d in thinned(view.item.discrepancies, MOST_REQUESTS)]
                x += [short(p) for p in places]
                y += [round(i + 0.2 * (2 * ((n * 0.618034) % 1) - 1), 3) for n in range(len(places))]
        if x:
            marker = {"color": light(colour), "symbol": symbol, "size": 8, "opacity": 0.8}
            figure.add_trace(go.Scatter(x=x, y=y, mode="markers", marker=marker, name=name, hoverinfo="x"))
    figure.add_vrect(x0=-1, x1=0, fillcolor=light("band"), line_width=0, layer="below")
    for x_line in (0, 1):
        figure.add_vline(x=x_line, line_color=light("line"), line_width=1.5)
    ticks = {"tickvals": [0, 0.25, 0.5, 0.75, 1], "ticktext": ["good", "25 %", "50 %", "75 %", "bad"]}
    title = "discrepancy (good: noise, bad: unusable)"
    figure.update_xaxes(title=title, range=[-0.35, FARTHEST + 0.05], **ticks)
    return finished(figure, Rows([_label(v) for v in rows], [_short(v) for v in rows], [], 46, 0.3))


def place(view: ItemView, discrepancy: float) -> float:
    """0 at `good`, 1 at `bad`; below good it is drawn down to -0.25 at a discrepancy of 0. Not a number is farthest."""
    good, bad = view.item.thresholds.good, view.item.thresholds.bad
    if not discrepancy < FARTHEST * (bad - good) + good:
        return FARTHEST
    if discrepancy <= good:
        return 0.25 * (discrepancy / good - 1) if good else -0.02
    return (discrepancy - good) / (bad - good)


def sensitivity(scores: Mapping[str, Json]) -> Json | None:
    """S_macro and macro coverage of each set by the scale of all tolerances."""
    if not scores:
        return None
    figure = go.Figure()
    colours = (("win", "solid", "circle"), ("loss", "dash", "diamond"), ("candidate", "dot", "square"))
    for number, (name, score) in enumerate(scores.items()):
        colour, dash, symbol = colours[number % len(colours)]
        x = [float(scale) for scale in score["sensitivity"]]
        y = [short(100 * s["coverage_macro"]) for s in score["sensitivity"].values()]
        texts = [f"S {s['speedup']:.3f}" if s["speedup"] else "no valid item" for s in score["sensitivity"].values()]
        figure.add_trace(
            go.Scatter(
                x=x, y=y, text=texts, mode="lines+markers", name=plain(name),
                line={"color": light(colour), "dash": dash},
                marker={"color": light(colour), "symbol": symbol, "size": 9},
                hovertemplate="tolerance " + TIMES + " %{x}: %{y:.0f} % of families covered, %{text}<extra></extra>",
            )
        )  # fmt: skip
    scales = [float(scale) for scale in next(iter(scores.values()))["sensitivity"]]
    axis = {"type": "log", "tickvals": scales, "ticktext": [f"{TIMES} {scale:g}" for scale in scales]}
    figure.update_xaxes(title="tolerances, as multiples of the manifest's", **axis)
    figure.update_yaxes(title="macro coverage, %", range=[-4, 104], automargin=True)
    return finished_curves(figure, is_legend=True)
