"""An end-to-end run as tables in a terminal."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from fastkernels.bench.e2e.metrics import LATENCIES

Json = dict[str, Any]


def e2e_tables(results: Json) -> list[Table]:
    """Throughput, the engine's counters, latencies under load, and the comparison; those that have figures."""
    sides = [side for side in results.get("sides", []) if side["repeats"]]
    tables = [_throughput(results, sides)] if sides else []
    if sides and results["mode"] == "serving":
        tables.append(_latencies(sides))
    if any(side["replacements"] for side in results.get("sides", [])):
        tables.append(_replacements(results["sides"]))
    if results.get("comparisons"):
        tables.append(_comparisons(results["comparisons"]))
    return tables


def _new(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _throughput(results: Json, sides: list[Json]) -> Table:
    workload = results["workload"]
    table = _new(
        f"{workload['name']} ({workload['num_requests']})", "seconds", "requests/s", "output tok/s", "total tok/s",
        "start s", "GPU busy", "graph hits", "prefix hits", "preempted", "peak GB",
    )  # fmt: skip
    for side in sides:
        s, e = side["summary"], side["engine_summary"]
        peak = e["peak_memory_bytes"]
        table.add_row(
            escape(side["name"]), number(s["duration_s"], 3), number(s.get("requests_per_s")),
            number(s.get("output_tokens_per_s")), number(s.get("total_tokens_per_s")),
            number(side["startup_seconds"]), share(e["gpu_busy_share"]), share(e["graph_hit_share"]),
            share(e["prefix_hit_share"]), number(e["num_preemptions"], 0), number(peak and peak / 1e9, 2),
        )  # fmt: skip
    return table


def _latencies(sides: list[Json]) -> Table:
    table = _new("latency, ms", "mean", "p50", "p90", "p99")
    for side in sides:
        for key, name in LATENCIES.items():
            spread = side["summary"].get(key)
            if spread:
                label = f"{side['name']} {name}" if len(sides) > 1 else name
                table.add_row(escape(label), *(number(spread[k], 2) for k in ("mean", "p50", "p90", "p99")))
        summary = side["summary"]
        good = summary.get("goodput")
        if good:
            table.add_row("goodput, requests/s", number(good["requests_per_s"], 2))
        table.add_row("peak concurrency", number(summary.get("peak_concurrency"), 0))
    return table


def _replacements(sides: list[Json]) -> Table:
    table = _new("replaced op", "set", "rank", "calls", "status")
    for side in sides:
        for line in side["replacements"]:
            rank = line.get("rank")
            cells = (line["op"], line["set"], "0" if rank is None else str(rank), str(line["num_calls"]))
            table.add_row(*map(escape, cells), line["status"])
    return table


def _comparisons(found: list[Json]) -> Table:
    table = _new("against the baseline", "speed", "95 % interval", "equal tokens", "first difference")
    for line in found:
        speed = line["speed"]
        interval = f"{speed['low']:.3f} .. {speed['high']:.3f}" if speed["low"] is not None else "-"
        tokens = line["tokens"][0] if line["tokens"] else None
        place = tokens and tokens["first_difference"]
        table.add_row(
            escape(line["side"]), f"{speed['ratio']:.3f}", interval,
            share(tokens["share_equal"]) if tokens else ("equal texts" if all(line["has_equal_digests"]) else "-"),
            f"request {place[0]}, token {place[1]}" if place else "none" if tokens else "-",
        )  # fmt: skip
    return table
