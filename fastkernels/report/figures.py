"""The report's plots as Plotly figures: plain data, at most a few thousand drawn points each.

Colours are those of the light theme; report.js exchanges them by PALETTE for the dark one. They are of
the Okabe-Ito set, told apart without colour by symbol as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import plotly.graph_objects as go

from fastkernels.harness.verdict import Speed, Verdict
from fastkernels.report.axes import RATIO_LADDERS, SHARE_LADDERS, TIME_LADDERS, log_axis, short, thinned
from fastkernels.report.cases import brief_name
from fastkernels.report.view import Row, View, error_groups, samples_us
from fastkernels.scoring.statistics import percentile

PALETTE = {
    "win": ("#0067a3", "#56b4e9"),
    "loss": ("#a63f00", "#ff8f4d"),
    "tie": ("#5f6670", "#a7adb8"),
    "baseline": ("#6b7078", "#9aa1ad"),
    "candidate": ("#00795a", "#2fc79a"),
    "text": ("#1c2024", "#e6e8eb"),
    "muted": ("#5c6269", "#9ea4ac"),
    "grid": ("#e3e6ea", "#31363d"),
    "band": ("#d9dde3", "#3a4049"),
    "line": ("#3d434a", "#c3c8cf"),
}
"""name: (light, dark)"""

TIMES = "\u00d7"

MAX_POINTS = 3000
"""Drawn samples of the latency plot, over all boxes; quartiles are of every sample."""

LEAST_SHARE = 1e-4
"""Smaller shares of a tolerance are drawn here."""

ROW = 44
_EDGE = 74
_SPEED_STYLE = {
    Speed.WIN: ("win", "triangle-right", "WIN"),
    Speed.TIE: ("tie", "circle", "TIE"),
    Speed.LOSS: ("loss", "triangle-left", "LOSS"),
}


def light(name: str) -> str:
    return PALETTE[name][0]


def forest(view: View) -> dict[str, Any] | None:
    """Speedups with their intervals, one row a timed case; the noise floor as a band. None without timings."""
    rows = view.timed
    if not rows:
        return None
    figure = go.Figure()
    for speed, (colour, symbol, name) in _SPEED_STYLE.items():
        chosen = [(i, row.timing) for i, row in enumerate(rows) if row.timing and row.timing["speed"] == speed]
        if chosen:
            figure.add_trace(_intervals(chosen, light(colour), symbol, name))
    add_bands(figure, [row.timing["noise_floor"] for row in rows if row.timing], 0.36)
    figure.add_vline(x=1, line_color=light("line"), line_width=1.5)
    values = [v for row in rows if row.timing for v in (row.timing["low"], row.timing["high"], row.timing["ratio"])]
    axis = log_axis([*values, 0.92, 1.08], RATIO_LADDERS, TIMES)
    figure.update_xaxes(title="speedup over the baseline (log)", **axis)
    return finished(figure, Rows(*labels(rows, 38), [_figures(row) for row in rows], ROW, 0.37))


def add_bands(figure: go.Figure, floors: Sequence[float], reach: float) -> None:
    """One band a row, from 1 / (1 + floor) to 1 + floor; all at once, for Plotly looks through all that are there when
    one is added."""
    look = {"type": "rect", "fillcolor": light("band"), "line_width": 0, "layer": "below"}
    bands = [{"x0": 1 / (1 + f), "x1": 1 + f, "y0": i - reach, "y1": i + reach, **look} for i, f in enumerate(floors)]
    figure.update_layout(shapes=bands)


def _intervals(chosen: Sequence[tuple[int, Any]], colour: str, symbol: str, name: str) -> go.Scatter:
    timings = [timing for _, timing in chosen]
    return go.Scatter(
        x=[short(t["ratio"]) for t in timings],
        y=[i for i, _ in chosen],
        error_x={
            "type": "data",
            "array": [short(max(0.0, t["high"] - t["ratio"])) for t in timings],
            "arrayminus": [short(max(0.0, t["ratio"] - t["low"])) for t in timings],
            "color": colour,
            "thickness": 2,
            "width": 5,
        },
        customdata=[[short(t["low"]), short(t["high"]), f"{t['noise_floor']:.1%}", t["num_pairs"]] for t in timings],
        hovertemplate="%{x:.3f}"
        + TIMES
        + " [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<br>noise floor %{customdata[2]}, "
        "%{customdata[3]} pairs<extra>" + name + "</extra>",
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 12},
        name=name,
    )


def _figures(row: Row) -> tuple[str, str]:
    assert row.timing is not None
    ratio = f"{row.timing['ratio']:.2f}{TIMES}"
    return f"{ratio} [{row.timing['low']:.2f}, {row.timing['high']:.2f}]", ratio


def latency(view: View) -> dict[str, Any] | None:
    """The distribution of every raw sample, baseline and candidate, one pair of boxes a timed case."""
    rows = view.timed
    samples = {side: [samples_us(row.timing, side) for row in rows if row.timing] for side in ("baseline", "candidate")}
    if not rows or not any(map(any, samples.values())):
        return None
    figure = go.Figure()
    room = max(8, MAX_POINTS // (2 * len(rows)))
    for side, offset in (("baseline", -0.19), ("candidate", 0.19)):
        boxes = [(i + offset, values) for i, values in enumerate(samples[side]) if values]
        figure.add_trace(_points(boxes, side, room))
        figure.add_trace(_boxes(boxes, side))
    everything = [v for side in samples.values() for values in side for v in values]
    figure.update_xaxes(title="microseconds per call (log)", **log_axis(everything, TIME_LADDERS))
    medians = [f"{r.timing['baseline_us']:.4g} → {r.timing['candidate_us']:.4g} µs" for r in rows if r.timing]
    return finished(figure, Rows(*labels(rows, 30), [(text, text) for text in medians], 54, 0.36))


def _boxes(boxes: Sequence[tuple[float, list[float]]], side: str) -> go.Box:
    def quantiles(share: float) -> list[float]:
        return [short(percentile(values, share)) for _, values in boxes]

    return go.Box(
        y=[y for y, _ in boxes],
        lowerfence=quantiles(0.05),
        q1=quantiles(0.25),
        median=quantiles(0.5),
        q3=quantiles(0.75),
        upperfence=quantiles(0.95),
        orientation="h",
        width=0.3,
        line={"color": light(side), "width": 2},
        fillcolor="rgba(0,0,0,0)",
        name=side,
        legendgroup=side,
        hoverinfo="x",
    )


def _points(boxes: Sequence[tuple[float, list[float]]], side: str, room: int) -> go.Scatter:
    """Up to `room` samples a box, spread across its width by a fixed pattern."""
    x: list[float] = []
    y: list[float] = []
    for place, values in boxes:
        for number, value in enumerate(thinned(values, room)):
            x.append(short(value))
            y.append(round(place + 0.13 * (2 * ((number * 0.618034) % 1) - 1), 3))
    marker = {"color": light(side), "size": 4, "opacity": 0.45, "symbol": "circle" if side == "candidate" else "x-thin"}
    marker["line"] = {"color": light(side), "width": 0 if side == "candidate" else 1}
    return go.Scatter(x=x, y=y, mode="markers", marker=marker, legendgroup=side, showlegend=False, hoverinfo="skip")


def errors(view: View) -> dict[str, Any] | None:
    """Error over what was allowed, by input family; a failed call stands at the right edge."""
    records = [(anchor, r) for anchor, r in view.anchors if r["cases"]]
    groups = [(i, group) for i, (_, record) in enumerate(records) for group in error_groups(record)]
    shares = [s for _, g in groups for s in (g.row_share, g.bias_share) if s]
    failed = [(i, g) for i, g in groups if g.verdict != Verdict.PASSED]
    if not shares and not failed:
        return None
    lowest = max(min(shares, default=LEAST_SHARE), LEAST_SHARE)
    edge = max(3.0, 1.6 * max(shares, default=1.0))
    figure = go.Figure()
    for kind, name, colour, symbol, offset in (
        ("row_share", "worst row", "candidate", "circle-open", -0.14),
        ("bias_share", "bias", "win", "diamond-open", 0.14),
    ):
        chosen = [(i + offset, g, max(share, lowest)) for i, g in groups if (share := getattr(g, kind)) is not None]
        figure.add_trace(_dots([(y, x, _about(g)) for y, g, x in chosen], name, light(colour), symbol))
    figure.add_trace(_dots([(i, edge, f"{g.verdict}<br>{_about(g)}") for i, g in failed], "failed", light("loss"), "x"))
    figure.add_vline(x=1, line_color=light("line"), line_width=1.5)
    axis = log_axis([0.8 * lowest, 1.4 * edge], SHARE_LADDERS)
    figure.update_xaxes(title="error ÷ tolerance (log; right of 1 fails)", **axis)
    names = [f"<b>{plain(r['op'])}</b> · {plain(r['implementation'])}" for _, r in records]
    short = [plain(_cut(f"{r['op']} · {r['implementation']}", 40)) for _, r in records]
    return finished(figure, Rows(names, short, [], ROW, 0.31))


def _dots(points: Sequence[tuple[float, float, str]], name: str, colour: str, symbol: str) -> go.Scatter:
    return go.Scatter(
        x=[short(x) for _, x, _ in points],
        y=[round(y, 2) for y, _, _ in points],
        text=[text for _, _, text in points],
        hovertemplate="%{text}<br>%{x:.3g} of the tolerance<extra>" + name + "</extra>",
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 9, "line": {"width": 0 if symbol == "x" else 2}},
        name=name,
        visible=bool(points),
    )


def _about(group: Any) -> str:
    return plain(" ".join(filter(None, (group.family, group.phase, group.dtype, group.shapes))))


@dataclass(frozen=True)
class Rows:
    """How rows are named. labels: beside them; short: above them, on a narrow screen; notes: figures at the right,
    long and short; height: pixels of a row; reach: how far marks extend from a row's middle, in rows."""

    labels: Sequence[str]
    short: Sequence[str]
    notes: Sequence[tuple[str, str]]
    height: int
    reach: float


def labels(rows: Sequence[Row], brief: int) -> tuple[list[str], list[str]]:
    """Two lines, op and set over shapes; and one of at most `brief` characters: op and set, or shapes where the
    row before has the same."""
    long, short, before = [], [], ""
    for row in rows:
        assert row.timing is not None
        name = f"{row.record['op']} · {row.record['implementation']}"
        beside = [other.timing for other in rows if other.timing and other.record is row.record]
        shapes = brief_name(row.timing, beside)
        small = f'<span style="font-size:11px">{plain(_cut(shapes, 40))}</span>'
        long.append(f"<b>{plain(row.record['op'])}</b> · {plain(row.record['implementation'])}<br>{small}")
        short.append(plain(_cut(shapes if name == before else name, brief)))
        before = name
    return long, short


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def plain(text: str) -> str:
    """Plotly reads a few HTML tags in text: none may come from a name."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def finished(figure: go.Figure, rows: Rows) -> dict[str, Any]:
    """Rows from the top; report.js adds notes and fits all to narrow screens."""
    count = len(rows.labels)
    figure.update_yaxes(
        tickvals=list(range(count)),
        ticktext=list(rows.labels),
        range=[count - 0.5, -0.5],
        automargin=True,
        zeroline=False,
        fixedrange=True,
        tickfont_size=13,
    )
    figure.update_xaxes(zeroline=False, gridcolor=light("grid"), fixedrange=True, title_font_size=13)
    figure.update_yaxes(gridcolor=light("grid"))
    figure.update_layout(
        template="none",
        height=_EDGE + 34 + rows.height * count,
        margin={"l": 8, "r": 8, "t": 34, "b": _EDGE - 8, "pad": 6},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": light("text")},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left", "yref": "paper"},
        hoverlabel={"font_size": 13},
        dragmode=False,
        showlegend=True,
    )
    spec: dict[str, Any] = json.loads(figure.to_json())
    return {"data": spec["data"], "layout": spec["layout"], **asdict(rows)}


def finished_curves(figure: go.Figure, *, is_legend: bool, height: int = 300) -> dict[str, Any]:
    """Lines over an axis, without rows."""
    axes = {"zeroline": False, "gridcolor": light("grid"), "fixedrange": True, "title_font_size": 13}
    figure.update_xaxes(**axes)
    figure.update_yaxes(**axes, automargin=True)
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 14, "t": 34 if is_legend else 14, "b": 52, "pad": 4},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": light("text")},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left"},
        hoverlabel={"font_size": 13},
        dragmode=False,
        showlegend=is_legend,
    )
    spec: dict[str, Any] = json.loads(figure.to_json())
    return {"data": spec["data"], "layout": spec["layout"]}
