"""report.html: one file that fetches nothing, made from a run's results."""

from __future__ import annotations

import base64
import hashlib
import math
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from fastkernels.harness.verdict import Verdict
from fastkernels.report import accounting, figures, view
from fastkernels.report.cases import case_name
from fastkernels.report.clocks import clocks
from fastkernels.report.figures import PALETTE, TIMES
from fastkernels.report.sources import MAX_LINES, cut_lines, side_by_side
from fastkernels.scoring.policies import PUNITIVE_SPEEDUP

_TEMPLATES = "fastkernels.report.templates"

_VERDICT_MARKS = {Verdict.PASSED: "\u2713", Verdict.UNTESTABLE: "?", Verdict.NEVER_CALLED: "?", Verdict.CHEATING: "!"}
_NULL_MARKS = {"rejected": "\u2713", "passed": "!", "not applicable": "\u2013", "not tried": "\u00b7"}
_SPEED_MARKS = {"WIN": "\u25b2", "LOSS": "\u25bc", "TIE": "\u25cf"}


def render(results: dict[str, Any]) -> str:
    """The report of a run, finished or not."""
    seen = view.view_of(results)
    return page(
        "report.html",
        {"forest": figures.forest(seen), "latency": figures.latency(seen), "errors": figures.errors(seen)},
        view=seen,
        results=results,
        sets=view.set_summaries(seen),
        accounts=accounting.run_policies(results),
        nulls=view.null_matrix(results),
        taxonomy=view.taxonomy(seen),
        clocks=clocks(seen),
        command=view.command(results),
    )


def page(template: str, plots: dict[str, Any], **values: Any) -> str:
    """A page of the report's look. plots: figures by name, None for those that have no data."""
    drawn = {name: plot for name, plot in plots.items() if plot}
    scripts = [template_text("report.js")]
    if drawn:
        scripts.insert(0, _plotly())
    return (
        environment()
        .get_template(template)
        .render(
            plots=drawn,
            palette=PALETTE,
            scripts=[Markup(script) for script in scripts],
            policy=_policy(scripts),
            style=Markup(template_text("style.css")),
            **values,
        )
    )


def _policy(scripts: list[str]) -> str:
    """A content security policy: nothing is fetched, and no script runs but those that are the report's own."""
    hashes = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


@cache
def _plotly() -> str:
    text = get_plotlyjs()
    if "</script" in text.lower():
        raise AssertionError("plotly.js holds '</script', which ends an inline script.")
    return text


def template_text(name: str) -> str:
    """Of a template, style sheet or script of this package."""
    return resources.files(_TEMPLATES).joinpath(name).read_text(encoding="utf-8")


@cache
def environment() -> jinja2.Environment:
    """Filters and globals of every page; loads this package's templates."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(template_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        us=microseconds,
        ratio=ratio,
        percent=percent,
        scientific=scientific,
        bytes=byte_count,
        seconds=seconds,
        case_name=case_name,
        sort_value=sort_value,
    )
    made.globals.update(
        cut_lines=cut_lines,
        most_lines=MAX_LINES,
        side_by_side=side_by_side,
        error_groups=view.error_groups,
        sentence=view.sentence,
        verdict_mark=lambda verdict: _VERDICT_MARKS.get(verdict, "\u2717"),
        null_mark=lambda outcome: _NULL_MARKS[outcome],
        policies=accounting.POLICIES,
        imputed=PUNITIVE_SPEEDUP,
        speed_mark=lambda speed: _SPEED_MARKS[speed],
    )
    return made


def microseconds(value: float | None) -> str:
    """Four digits: 0.8124, 12.35, 1546."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def ratio(value: float | None) -> str:
    return "\u2013" if value is None or not math.isfinite(value) else f"{value:.3f}{TIMES}"


def percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.1 or value == 0 else f"{100 * value:.1f} %"


def scientific(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.2e}" if value else "0"


def sort_value(value: float | None) -> str:
    """What a table sorts a cell by: a number as JavaScript reads it, or nothing."""
    return "" if value is None else "Infinity" if value == math.inf else str(value)


def byte_count(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"


def seconds(value: float) -> str:
    if value < 60:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
