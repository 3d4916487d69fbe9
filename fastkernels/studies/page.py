"""The page of the routing study: its figures in words, a table and two plots; one file that fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from fastkernels.report.figures import finished_curves, light
from fastkernels.report.html import page
from fastkernels.studies.routing import INPUTS, sentence

Json = dict[str, Any]

_STYLES = (("candidate", "solid", "circle"), ("loss", "dash", "diamond"), ("baseline", "dot", "square"))
_HEIGHT = 340


def render_study(study: Json) -> str:
    """The page of a study's JSON."""
    return page(
        "study.html",
        {"experts": loads_figure(study), "ranks": ranks_figure(study)},
        study=study,
        inputs=[(name, study["inputs"][name]) for name in INPUTS],
        sentence=sentence(study),
        environment=study["environment"],
    )


def loads_figure(study: Json) -> Json:
    """Each expert's tokens over the mean, in the order of real prompts' loads: another order is another identity."""
    order = sorted(range(study["model"]["num_experts"]), key=lambda i: -study["inputs"][INPUTS[0]]["loads"][i])
    curves = {name: [relative_loads(study, name)[i] for i in order] for name in INPUTS}
    return _curves(curves, [str(i) for i in order], "expert, hottest under real prompts first")


def ranks_figure(study: Json) -> Json:
    """The same, each input's experts in the order of its own loads: how steep is how skewed."""
    curves = {name: sorted(relative_loads(study, name), reverse=True) for name in INPUTS}
    ranks = [str(i + 1) for i in range(study["model"]["num_experts"])]
    return _curves(curves, ranks, "rank of the expert under that input")


def relative_loads(study: Json, name: str) -> list[float]:
    """1 is an expert's fair share."""
    loads = study["inputs"][name]["loads"]
    return [load * len(loads) / sum(loads) for load in loads]


def _curves(curves: dict[str, list[float]], ticks: Sequence[str], title: str) -> Json:
    figure = go.Figure()
    for (name, values), (colour, dash, symbol) in zip(curves.items(), _STYLES, strict=True):
        figure.add_trace(
            go.Scatter(
                x=list(range(len(values))),
                y=[round(value, 4) for value in values],
                text=list(ticks),
                mode="lines+markers",
                line={"color": light(colour), "width": 2.5, "dash": dash},
                marker={"color": light(colour), "symbol": symbol, "size": 9},
                name=name,
                hovertemplate="%{text}: %{y:.3f} of a fair share<extra>" + name + "</extra>",
            )
        )
    figure.add_hline(y=1, line_color=light("line"), line_width=1)
    every = max(1, len(ticks) // 16)
    figure.update_xaxes(title=title, tickvals=list(range(0, len(ticks), every)), ticktext=list(ticks[::every]))
    figure.update_yaxes(title="tokens over the mean", rangemode="tozero")
    return finished_curves(figure, is_legend=True, height=_HEIGHT)
