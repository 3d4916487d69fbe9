"""Plots of an end-to-end run: latency distributions, tokens and requests over time; a few hundred points a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from fastkernels.report.axes import TIME_LADDERS, log_axis, short, thinned
from fastkernels.report.figures import finished_curves, light, plain
from fastkernels.scoring.statistics import percentile

Json = dict[str, Any]
_MOST_POINTS = 300
_NUM_BUCKETS = 60
_STYLES = (("baseline", "solid", "circle"), ("candidate", "dash", "diamond"), ("win", "dot", "square"))
_PERCENTILES = (50, 90, 99)


def latency_figure(name: str, sides: Sequence[tuple[str, Sequence[float]]]) -> Json | None:
    """How many of the samples took at most so long: one line a side, its p50, p90 and p99 marked. Milliseconds."""
    drawn = [(side, sorted(values)) for side, values in sides if values]
    if not drawn:
        return None
    figure = go.Figure()
    for (side, values), (colour, dash, symbol) in zip(drawn, _STYLES, strict=False):
        kept = thinned(values, _MOST_POINTS)
        shares = [100 * i / max(1, len(kept) - 1) for i in range(len(kept))]
        line = {"color": light(colour), "width": 2.5, "dash": dash}
        figure.add_trace(
            go.Scatter(
                x=[short(v) for v in kept], y=[round(s, 2) for s in shares], mode="lines", line=line, name=plain(side),
                legendgroup=side, hovertemplate="%{y:.0f} % within %{x:.4g} ms<extra>" + plain(side) + "</extra>",
            )
        )  # fmt: skip
        marks = [percentile(values, share / 100) for share in _PERCENTILES]
        figure.add_trace(
            go.Scatter(
                x=[short(v) for v in marks], y=list(_PERCENTILES), mode="markers", legendgroup=side, showlegend=False,
                marker={"color": light(colour), "symbol": symbol, "size": 9}, hoverinfo="skip",
            )
        )  # fmt: skip
    axis = log_axis([v for _, values in drawn for v in values], TIME_LADDERS)
    figure.update_xaxes(title=f"{name}, ms (log)", **axis)
    figure.update_yaxes(title="share of samples, %", range=[-3, 103], tickvals=[0, 25, 50, 75, 90, 99])
    return finished_curves(figure, is_legend=len(drawn) > 1)


def throughput_figure(
    sides: Sequence[tuple[str, Sequence[Sequence[float]]]], what: str = "output tokens"
) -> Json | None:
    """Tokens (or what else there is) a second over the time of one pass, from [seconds, tokens by then]."""
    drawn = [(side, points) for side, points in sides if len(points) > 1]
    if not drawn:
        return None
    figure = go.Figure()
    end = max(points[-1][0] for _, points in drawn)
    for (side, points), (colour, dash, _) in zip(drawn, _STYLES, strict=False):
        x, y = token_rates(points, end / _NUM_BUCKETS)
        figure.add_trace(_steps(x, y, side, colour, dash, f"%{{y:,.0f}} {what}/s at %{{x:.3g}} s"))
    figure.update_xaxes(title="seconds", range=[0, end])
    figure.update_yaxes(title=f"{what}/s", rangemode="tozero")
    return finished_curves(figure, is_legend=len(drawn) > 1)


def concurrency_figure(sides: Sequence[tuple[str, Sequence[Json]]]) -> Json | None:
    """Requests under way over time, from their records."""
    drawn = [(side, [r for r in records if r["e2e_s"] is not None]) for side, records in sides]
    drawn = [(side, records) for side, records in drawn if records]
    if not drawn:
        return None
    figure = go.Figure()
    end = max(r["start_s"] + r["e2e_s"] for _, records in drawn for r in records)
    for (side, records), (colour, dash, _) in zip(drawn, _STYLES, strict=False):
        width = end / (4 * _NUM_BUCKETS) or 1.0
        x = [width * (i + 0.5) for i in range(4 * _NUM_BUCKETS)]
        y = [float(sum(r["start_s"] <= t < r["start_s"] + r["e2e_s"] for r in records)) for t in x]
        figure.add_trace(_steps(x, y, side, colour, dash, "%{y:,.0f} requests at %{x:.3g} s"))
    figure.update_xaxes(title="seconds", range=[0, end])
    figure.update_yaxes(title="requests under way", rangemode="tozero")
    return finished_curves(figure, is_legend=len(drawn) > 1)


def token_rates(points: Sequence[Sequence[float]], width: float) -> tuple[list[float], list[float]]:
    """Middles of buckets `width` seconds wide, and tokens a second in each; tokens are spread evenly between points."""
    if width <= 0:
        return [], []
    rates: list[float] = []
    place, end = 0, points[-1][0]
    before = 0.0
    while len(rates) * width < end - 1e-9:
        until = (len(rates) + 1) * width
        while place < len(points) and points[place][0] <= until:
            place += 1
        made = _made_by(points, place, until)
        rates.append((made - before) / (min(until, end) - len(rates) * width))
        before = made
    return [width * (i + 0.5) for i in range(len(rates))], rates


def _made_by(points: Sequence[Sequence[float]], place: int, seconds: float) -> float:
    """Tokens by then; points[place] is the first one after it."""
    if place >= len(points):
        return points[-1][1]
    after, tokens_after = points[place]
    earlier, tokens_earlier = points[place - 1] if place else (0.0, 0.0)
    if after <= earlier:
        return tokens_earlier
    return tokens_earlier + (tokens_after - tokens_earlier) * (seconds - earlier) / (after - earlier)


def _steps(x: list[float], y: list[float], side: str, colour: str, dash: str, hover: str) -> go.Scatter:
    return go.Scatter(
        x=[short(v) for v in x], y=[short(v) for v in y], mode="lines", name=plain(side),
        line={"color": light(colour), "width": 2, "dash": dash, "shape": "hvh"},
        hovertemplate=hover + "<extra>" + plain(side) + "</extra>",
    )  # fmt: skip
