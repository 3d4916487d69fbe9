"""The site's plots as Plotly figures: fast_p curves, an op's speedups over agents, its errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from fastkernels.report.axes import RATIO_LADDERS, SHARE_LADDERS, log_axis, short
from fastkernels.report.figures import (
    LEAST_SHARE,
    PALETTE,
    ROW,
    TIMES,
    Rows,
    finished,
    finished_curves,
    forest,
    light,
    plain,
)
from fastkernels.report.view import Row, View
from fastkernels.scoring.fast_p import FastP, fast_p_curve

Json = dict[str, Any]

CURVES = (("win", "solid"), ("loss", "dash"), ("candidate", "dot"), ("tie", "dashdot"), ("text", "longdash"))
"""Colour and dash of each curve in turn; after five the dash moves on by one."""

BANDS = {f"{name}-band": tuple(f"{colour}24" for colour in PALETTE[name]) for name, _ in CURVES}
SITE_PALETTE = {**PALETTE, **BANDS}

_LEAST, _MOST = 0.5, 8.0
_HEIGHT = 380
_LINE = 20
"""Pixels of a name in the legend, which takes its room from the plot."""


@dataclass(frozen=True)
class Curve:
    """lows: of one agent, the lower interval bound of every target's speedup; None of what it did not get right."""

    name: str
    lows: Sequence[float | None]


def fast_p_curves(curves: Sequence[Curve], target: str) -> Json | None:
    """The share of all targets that are faster than p with their whole interval, for every p. target: "ops"."""
    drawn = [curve for curve in curves if curve.lows]
    if not drawn:
        return None
    figure = go.Figure()
    end = min(_MOST, max([2.0, *(1.1 * low for curve in drawn for low in curve.lows if low)]))
    for number, curve in enumerate(drawn):
        colour, dash = CURVES[number % len(CURVES)][0], CURVES[(number + number // len(CURVES)) % len(CURVES)][1]
        places = sorted({_LEAST, 1.0, end, *(low for low in curve.lows if low and _LEAST < low < end)})
        _add(figure, curve.name, fast_p_curve(curve.lows, places), colour, dash)
    figure.add_vline(x=1, line_color=light("line"), line_width=1.5)
    axis = log_axis([_LEAST / 0.93, end / 1.07], RATIO_LADDERS, TIMES)
    figure.update_xaxes(title="p: speedup over the baseline (log)", **axis)
    figure.update_yaxes(title=f"% of all {target}", range=[-2, 102], tickvals=[0, 25, 50, 75, 100])
    return finished_curves(figure, is_legend=True, height=_HEIGHT + _LINE * max(0, len(drawn) - 2))


def _add(figure: go.Figure, name: str, points: Sequence[FastP], colour: str, dash: str) -> None:
    x = [short(point.p) for point in points]
    low, high, share = ([round(100 * getattr(p, key), 2) for p in points] for key in ("low", "high", "share"))
    shape = {"shape": "hv", "width": 0}
    hidden = {"mode": "lines", "legendgroup": name, "showlegend": False, "hoverinfo": "skip", "line": shape}
    figure.add_trace(go.Scatter(x=x, y=low, **hidden))
    figure.add_trace(go.Scatter(x=x, y=high, fill="tonexty", fillcolor=BANDS[f"{colour}-band"][0], **hidden))
    figure.add_trace(
        go.Scatter(
            x=x, y=share, mode="lines", name=plain(name), legendgroup=name,
            line={"color": light(colour), "width": 2.5, "dash": dash, "shape": "hv"},
            customdata=[[p.num_faster, p.num_targets] for p in points],
            hovertemplate="over %{x:.3g}" + TIMES + ": %{customdata[0]} of %{customdata[1]}<extra>"
            + plain(name) + "</extra>",
        )
    )  # fmt: skip


def op_forest(found: Sequence[tuple[str, Json]]) -> Json | None:
    """An op's timed cases over agents, as a report shows those of one run. found: (agent, the op in its entry)."""
    view = View({"ops": []})
    for agent, op in found:
        record = {"op": agent, "implementation": op["file"], "verdict": op["verdict"], "message": ""}
        view.rows += [Row(record, "", timing, None) for timing in op["timings"]]
    return forest(view)


def op_errors(found: Sequence[tuple[str, Json]]) -> Json | None:
    """The worst row's error of each input family and dtype, over what is allowed, one row an agent."""
    rows = [(agent, op) for agent, op in found if any(e["row_share"] for e in op["errors"])]
    if not rows:
        return None
    figure = go.Figure()
    for key, name, colour, symbol, offset in (
        ("row_share", "worst row", "candidate", "circle-open", -0.14),
        ("bias_share", "bias", "win", "diamond-open", 0.14),
    ):
        marks = [(i + offset, e) for i, (_, op) in enumerate(rows) for e in op["errors"] if e[key] is not None]
        figure.add_trace(
            go.Scatter(
                x=[short(max(e[key], LEAST_SHARE)) for _, e in marks], y=[y for y, _ in marks], mode="markers",
                text=[plain(f"{e['family']} {e['dtype']}") for _, e in marks], name=name,
                hovertemplate="%{text}<br>%{x:.3g} of the tolerance<extra>" + name + "</extra>",
                marker={"color": light(colour), "symbol": symbol, "size": 9, "line": {"width": 2}},
            )
        )  # fmt: skip
    figure.add_vline(x=1, line_color=light("line"), line_width=1.5)
    shares = [
        max(e[k], LEAST_SHARE) for _, op in rows for e in op["errors"] for k in ("row_share", "bias_share") if e[k]
    ]
    axis = log_axis([0.8 * min(shares), 1.4, *shares], SHARE_LADDERS)
    figure.update_xaxes(title="error \u00f7 tolerance (log; right of 1 fails)", **axis)
    names = [plain(agent) for agent, _ in rows]
    return finished(figure, Rows([f"<b>{name}</b>" for name in names], names, [], ROW, 0.31))
