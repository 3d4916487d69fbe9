"""report.html of an end-to-end run."""

from __future__ import annotations

from typing import Any

from fastkernels.bench.e2e.failures import failures
from fastkernels.bench.e2e.load import RequestRecord
from fastkernels.bench.e2e.metrics import latencies, pipeline_latencies
from fastkernels.registry import Kind
from fastkernels.report.e2e_columns import (
    Column,
    engine_columns,
    is_load,
    kind_of,
    latency_names,
    makes_tokens,
    throughput_columns,
)
from fastkernels.report.e2e_figures import concurrency_figure, latency_figure, throughput_figure
from fastkernels.report.html import byte_count, page
from fastkernels.report.view import command

Json = dict[str, Any]


def render_e2e(results: Json) -> str:
    """The page of a run, finished or not."""
    sides = [side for side in results.get("sides", []) if side["repeats"]]
    chosen = [(side["name"], median_repeat(side)) for side in sides]
    names = latency_names(results)
    times = "token_times" if makes_tokens(results) else "answer_times" if is_load(results) else "work_times"
    work = "requests" if times == "answer_times" else _WORK[kind_of(results)]
    plots: Json = {"throughput": throughput_figure([(name, r[times]) for name, r in chosen], work)}
    if is_load(results):
        plots["concurrency"] = concurrency_figure([(name, r["requests"]) for name, r in chosen])
    samples = [(side["name"], side_latencies(side)) for side in sides] if names else []
    for key, name in names.items():
        plots[key] = latency_figure(name, [(side, values[key]) for side, values in samples])
    return page(
        "e2e.html",
        plots,
        results=results,
        workload=results.get("workload"),
        sides=sides,
        answered=[side for side in sides if side["summary"]["num_completed"]],
        is_load=is_load(results),
        makes_tokens=makes_tokens(results),
        work=work,
        throughput_columns=throughput_columns(results),
        engine_columns=engine_columns(results),
        latency_names=names,
        comparisons=results.get("comparisons", []),
        replacements=[(side["name"], line) for side in results.get("sides", []) for line in side["replacements"]],
        failures=failures(results) if "sides" in results else [],
        command=command(results),
        number=_number,
        share=_share,
        cell=_cell,
    )


_WORK = {Kind.AUTOREGRESSIVE: "output tokens", Kind.SINGLE_PASS: "requests", Kind.ITERATIVE: "steps"}


def median_repeat(side: Json) -> Json:
    """The repeat that the summary is of."""
    found: Json = next(r for r in side["repeats"] if r["summary"]["duration_s"] == side["summary"]["duration_s"])
    return found


def side_latencies(side: Json) -> dict[str, list[float]]:
    """Milliseconds by name, of every repeat's requests."""
    if any("work_times" in repeat for repeat in side["repeats"]):
        found = pipeline_latencies(side["repeats"])
        return {name: [1000 * value for value in values] for name, values in found.items()}
    records = [record_of(data) for repeat in side["repeats"] for data in repeat["requests"]]
    return {name: [1000 * value for value in values] for name, values in latencies(records).items()}


def record_of(data: Json) -> RequestRecord:
    return RequestRecord(**data)


def _number(value: float | None, digits: int = 1) -> str:
    return "\u2013" if value is None else f"{value:,.{digits}f}"


def _cell(column: Column, figures: Json) -> tuple[str, float | str]:
    """What a table shows of a figure, and what it is sorted by."""
    value = figures.get(column.key)
    if column.form == "bytes":
        return byte_count(value) if value else "\u2013", value or ""
    text = _share(value) if column.form == "share" else _number(value, column.digits)
    return text, "" if value is None else value


def _share(value: float | None) -> str:
    return "\u2013" if value is None else f"{100 * value:.1f} %"
