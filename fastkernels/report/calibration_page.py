"""report.html of a calibration: what is left of a model's quality against discrepancy, with the thresholds drawn in."""

from __future__ import annotations

from math import log10
from typing import Any

import plotly.graph_objects as go

from fastkernels.calibration.curve import falling_envelope
from fastkernels.report.axes import TIME_LADDERS, log_axis, short
from fastkernels.report.figures import finished_curves, light, plain
from fastkernels.report.html import page

Json = dict[str, Any]

LOG_FROM = 20
"""Thresholds that lie so many times nearer to 0 than the farthest answers are drawn on a logarithmic axis."""

_HEIGHT = 400
_NAMES_A_LINE, _LINE = 3, 26
"""Of a legend: names and pixels."""
_NEAR = 0.04
"""Of an axis: lines that are nearer to each other share a name."""
_STYLES = (
    ("win", "solid", "circle"),
    ("candidate", "dash", "square"),
    ("loss", "dot", "diamond"),
    ("text", "dashdot", "triangle-up"),
    ("tie", "longdash", "cross"),
    ("baseline", "longdashdot", "star"),
)


def render_calibration(record: Json) -> str:
    """record: as fastkernels/calibration/calibrate.py makes it."""
    plots = {}
    for family, one in record["families"].items():
        for model in models(one):
            plots[plot_name(family, model)] = _figure(one, [c for c in one["curves"] if c["model"] == model])
    return page(
        "calibration.html",
        plots,
        record=record,
        families=record["families"],
        models=models,
        plot_name=plot_name,
        noise_rows=noise_rows,
        dtypes=list(dict.fromkeys(dtype for one in record["families"].values() for dtype in one["good"])),
    )


def models(family: Json) -> list[str]:
    """Those that were damaged."""
    return list(dict.fromkeys(curve["model"] for curve in family["curves"]))


def plot_name(family: str, model: str) -> str:
    return f"{family}-{model}".replace("_", "-").replace(".", "-")


def noise_rows(family: Json) -> list[tuple[str, str, dict[str, float]]]:
    """(model, dtype, largest discrepancy by variant)."""
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for sample in family["noise"]:
        rows.setdefault((sample["model"], sample["dtype"]), {})[sample["variant"]] = max(sample["values"])
    return [(*key, values) for key, values in rows.items()]


def _figure(family: Json, curves: list[Json]) -> Json:
    figure = go.Figure()
    drawn = [point["discrepancy"] for curve in curves for point in curve["points"]]
    bad, goods = family["bad"]["value"], {dtype: good["value"] for dtype, good in family["good"].items()}
    is_log = bad * LOG_FROM < max(drawn)
    least = min([bad / 10, *(x for x in drawn if x > 0)])
    for curve, style in zip(curves, _STYLES, strict=False):
        _curve(figure, curve, style, is_log, least)
    figure.add_vline(x=bad, line_color=light("loss"), line_width=2)
    _mark(figure, bad, "bad", "loss", is_log, 1.0)
    shown = {dtype: good for dtype, good in goods.items() if not is_log or good >= least}
    for good in set(shown.values()):
        figure.add_vline(x=good, line_color=light("muted"), line_width=1, line_dash="dash")
    width = log10(max(drawn) / least) if is_log else max(drawn)
    for number, dtypes in enumerate(_beside(shown, is_log, width)):
        farthest = max(shown[dtype] for dtype in dtypes)
        _mark(figure, farthest, f"good: {', '.join(dtypes)}", "muted", is_log, 0.03 + 0.07 * number)
    axis: Json = {"range": [-0.01, 1.04 * min(max(drawn), 1.3)]}
    if is_log:
        axis = log_axis([least, *drawn], TIME_LADDERS)
    figure.update_xaxes(title="discrepancy (log)" if is_log else "discrepancy", **axis)
    figure.update_yaxes(title="quality left", range=[-0.06, 1.09], tickformat=".0%", dtick=0.25)
    lines = -(-len(curves) // _NAMES_A_LINE)
    drawing = finished_curves(figure, is_legend=True, height=_HEIGHT + _LINE * (lines - 1))
    drawing["layout"]["margin"]["t"] += _LINE * (lines - 1)
    return drawing


def _beside(goods: dict[str, float], is_log: bool, width: float) -> list[list[str]]:
    """dtypes whose lines are too near to one another for a name each, from the smallest on."""
    groups: list[list[str]] = []
    places = {dtype: log10(good) if is_log else good for dtype, good in goods.items()}
    for dtype in sorted(places, key=lambda name: places[name]):
        if groups and places[dtype] - places[groups[-1][0]] < _NEAR * width:
            groups[-1].append(dtype)
        else:
            groups.append([dtype])
    return groups


def _curve(figure: go.Figure, curve: Json, style: tuple[str, str, str], is_log: bool, least: float) -> None:
    colour, dash, symbol = style
    points = sorted(curve["points"], key=lambda point: point["severity"])
    first = least if is_log else 0.0
    figure.add_trace(
        go.Scatter(
            x=[short(max(p["discrepancy"], first)) for p in points],
            y=[_shown(p["retained"]) for p in points],
            customdata=[[p["severity"], p["quality"]] for p in points],
            hovertemplate="severity %{customdata[0]:.3g}: D %{x:.3g}, %{y:.1%} left<br>"
            + plain(curve["measure"]) + " %{customdata[1]:.4g}<extra>" + plain(curve["damage"]) + "</extra>",
            mode="markers",
            marker={"color": light(colour), "symbol": symbol, "size": 7},
            name=plain(curve["damage"]),
            legendgroup=curve["damage"],
        )
    )  # fmt: skip
    envelope = falling_envelope([p["discrepancy"] for p in points], [p["retained"] for p in points])
    figure.add_trace(
        go.Scatter(
            x=[short(max(x, first)) for x in envelope[0].tolist()],
            y=[_shown(y) for y in envelope[1].tolist()],
            mode="lines",
            line={"color": light(colour), "width": 2, "dash": dash},
            showlegend=False,
            legendgroup=curve["damage"],
            hoverinfo="skip",
        )
    )
    if curve["knee"] is not None:
        figure.add_trace(
            go.Scatter(
                x=[short(curve["knee"]["discrepancy"])],
                y=[round(curve["knee"]["retained"], 4)],
                mode="markers",
                marker={"color": "rgba(0,0,0,0)", "size": 19, "line": {"color": light(colour), "width": 2.5}},
                showlegend=False,
                legendgroup=curve["damage"],
                hovertemplate="knee: D %{x:.3g}, %{y:.1%} left<extra>" + plain(curve["damage"]) + "</extra>",
            )
        )


def _shown(retained: float) -> float:
    """Less than nothing is drawn a little under it."""
    return round(min(max(retained, -0.04), 1.0), 4)


def _mark(figure: go.Figure, x: float, text: str, colour: str, is_log: bool, height: float) -> None:
    figure.add_annotation(
        x=log10(x) if is_log else x,
        y=height,
        yref="paper",
        text=text,
        showarrow=False,
        xanchor="left",
        yanchor="top" if height > 0.5 else "bottom",
        xshift=3,
        font={"size": 12, "color": light(colour)},
    )
