"""lineage.html: an op's sources over time, each joined to what it came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from fastkernels.report.axes import RATIO_LADDERS, log_axis, short
from fastkernels.report.figures import TIMES, finished_curves, light, plain
from fastkernels.report.html import page
from fastkernels.report.lineage import Judged, Kernel, Lineage, in_tree_order

Json = dict[str, Any]

_HEIGHT = 420


def render_lineage(lineage: Lineage) -> str:
    numbers = {id(kernel): number for number, kernel in enumerate(lineage.kernels, 1)}
    parents = {id(child): kernel for kernel in lineage.kernels for child in kernel.children}
    return page(
        "lineage.html",
        {"lineage": _figure(lineage, numbers, parents)},
        lineage=lineage,
        numbers=numbers,
        rows=[(kernel, depth, parents.get(id(kernel))) for kernel, depth in in_tree_order(lineage.roots)],
        key=id,
    )


def _figure(lineage: Lineage, numbers: dict[int, int], parents: dict[int, Kernel]) -> Json | None:
    judged = [(kernel, j) for kernel in lineage.kernels for j in kernel.judged]
    timed = [(kernel, j) for kernel, j in judged if j.speedup is not None]
    if not timed:
        return None
    bounds = [math.exp(v) for _, j in timed if j.speedup for v in _ends(j)]
    floor = 0.94 * min(0.9, *bounds)
    figure = go.Figure()
    for kernel in lineage.kernels:
        parent = parents.get(id(kernel))
        if parent is not None:
            ends = [(parent.judged[-1] if parent.best is None else parent.best), kernel.judged[0]]
            _line(figure, [(j.when.isoformat(), _height(j, floor)) for j in ends])
    _passed(figure, timed, numbers)
    others = [(kernel, j) for kernel, j in judged if j.speedup is None]
    _failed(figure, others, numbers, floor)
    figure.add_hline(y=1, line_color=light("line"), line_width=1.5)
    axis = log_axis([floor, 1.12, *bounds], RATIO_LADDERS, TIMES)
    figure.update_yaxes(title="speedup (log)", **axis)
    figure.update_xaxes(title="judged", type="date")
    return finished_curves(figure, is_legend=True, height=_HEIGHT)


def _ends(judged: Judged) -> tuple[float, float]:
    assert judged.speedup is not None
    return judged.speedup.centre - judged.speedup.down, judged.speedup.centre + judged.speedup.up


def _height(judged: Judged, floor: float) -> float:
    return short(math.exp(judged.speedup.centre)) if judged.speedup else short(floor)


def _line(figure: go.Figure, ends: Sequence[tuple[str, float]]) -> None:
    figure.add_trace(
        go.Scatter(
            x=[x for x, _ in ends], y=[y for _, y in ends], mode="lines", showlegend=False, hoverinfo="skip",
            line={"color": light("baseline"), "width": 1.5},
        )
    )  # fmt: skip


def _passed(figure: go.Figure, found: Sequence[tuple[Kernel, Judged]], numbers: dict[int, int]) -> None:
    values = [j.speedup.to_json() for _, j in found if j.speedup]
    figure.add_trace(
        go.Scatter(
            x=[j.when.isoformat() for _, j in found],
            y=[short(v["speedup"]) for v in values],
            error_y={
                "type": "data",
                "array": [short(v["high"] - v["speedup"]) for v in values],
                "arrayminus": [short(v["speedup"] - v["low"]) for v in values],
                "color": light("win"),
                "thickness": 1.5,
            },
            text=[str(numbers[id(kernel)]) for kernel, _ in found],
            textposition="top right",
            customdata=[[k.sha256[:12], plain(k.implementation), j.num_cases] for k, j in found],
            hovertemplate="%{customdata[0]} (%{customdata[1]})<br>%{y:.3f}" + TIMES
            + " over %{customdata[2]} cases<extra></extra>",
            mode="markers+text",
            marker={"color": light("win"), "symbol": "circle", "size": 10},
            name="passed",
        )
    )  # fmt: skip


def _failed(figure: go.Figure, found: Sequence[tuple[Kernel, Judged]], numbers: dict[int, int], floor: float) -> None:
    if not found:
        return
    figure.add_trace(
        go.Scatter(
            x=[j.when.isoformat() for _, j in found],
            y=[short(floor)] * len(found),
            text=[str(numbers[id(kernel)]) for kernel, _ in found],
            textposition="top right",
            customdata=[[k.sha256[:12], plain(k.implementation), plain(j.verdict)] for k, j in found],
            hovertemplate="%{customdata[0]} (%{customdata[1]})<br>%{customdata[2]}<extra></extra>",
            mode="markers+text",
            marker={"color": light("loss"), "symbol": "x", "size": 9},
            name="no speed",
        )
    )
