"""report.html of an end-to-end run."""

from __future__ import annotations

from typing import Any

from fastkernels.bench.e2e.load import RequestRecord
from fastkernels.bench.e2e.metrics import LATENCIES, latencies
from fastkernels.bench.e2e.run import failures
from fastkernels.report.e2e_figures import concurrency_figure, latency_figure, throughput_figure
from fastkernels.report.html import page
from fastkernels.report.view import command

Json = dict[str, Any]


def render_e2e(results: Json) -> str:
    """The page of a run, finished or not."""
    sides = [side for side in results.get("sides", []) if side["repeats"]]
    is_load = results.get("mode") == "serving"
    chosen = [(side["name"], median_repeat(side)) for side in sides]
    plots: Json = {"throughput": throughput_figure([(name, r["token_times"]) for name, r in chosen])}
    if is_load:
        plots["concurrency"] = concurrency_figure([(name, r["requests"]) for name, r in chosen])
        samples = [(side["name"], side_latencies(side)) for side in sides]
        for key, name in LATENCIES.items():
            plots[key] = latency_figure(name, [(side, values[key]) for side, values in samples])
    return page(
        "e2e.html",
        plots,
        results=results,
        workload=results.get("workload"),
        sides=sides,
        is_load=is_load,
        latency_names=LATENCIES,
        comparisons=results.get("comparisons", []),
        replacements=[(side["name"], line) for side in results.get("sides", []) for line in side["replacements"]],
        failures=failures(results) if "sides" in results else [],
        command=command(results),
        number=_number,
        share=_share,
    )


def median_repeat(side: Json) -> Json:
    """The repeat that the summary is of."""
    found: Json = next(r for r in side["repeats"] if r["summary"]["duration_s"] == side["summary"]["duration_s"])
    return found


def side_latencies(side: Json) -> dict[str, list[float]]:
    """Milliseconds by name, of every repeat's requests."""
    records = [record_of(data) for repeat in side["repeats"] for data in repeat["requests"]]
    return {name: [1000 * value for value in values] for name, values in latencies(records).items()}


def record_of(data: Json) -> RequestRecord:
    return RequestRecord(**data)


def _number(value: float | None, digits: int = 1) -> str:
    return "\u2013" if value is None else f"{value:,.{digits}f}"


def _share(value: float | None) -> str:
    return "\u2013" if value is None else f"{100 * value:.1f} %"
