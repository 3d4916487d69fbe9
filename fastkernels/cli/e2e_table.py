"""An end-to-end run as tables in a terminal."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from fastkernels.report.e2e_columns import (
    Column,
    engine_columns,
    latency_names,
    makes_tokens,
    throughput_columns,
)

Json = dict[str, Any]


def e2e_tables(results: Json) -> list[Table]:
    """Throughput, the engine's counters, latencies, and the comparison; those that have figures."""
    sides = [side for side in results.get("sides", []) if side["repeats"]]
    tables = [_throughput(results, sides)] if sides else []
    names = latency_names(results)
    if sides and names:
        tables.append(_latencies(sides, names))
    if any(side["replacements"] for side in results.get("sides", [])):
        tables.append(_replacements(results["sides"]))
    if results.get("comparisons"):
        tables.append(_comparisons(results["comparisons"], None if makes_tokens(results) else names))
        tables += [_outputs(line) for line in results["comparisons"] if line.get("outputs")]
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
    speeds, engine = throughput_columns(results), engine_columns(results)
    table = _new(
        f"{workload['name']} ({workload['num_requests']})", "seconds", *(c.short for c in speeds),
        "start s", *(c.short for c in engine),
    )  # fmt: skip
    for side in sides:
        table.add_row(
            escape(side["name"]), number(side["summary"]["duration_s"] or None, 3),
            *(_cell(column, side["summary"]) for column in speeds),
            number(side["startup_seconds"]), *(_cell(column, side["engine_summary"]) for column in engine),
        )  # fmt: skip
    return table


def _cell(column: Column, figures: Json) -> str:
    value = figures.get(column.key)
    if column.form == "share":
        return share(value)
    return number(value / 1e9 if value and column.form == "bytes" else value, column.digits)


def _latencies(sides: list[Json], names: dict[str, str]) -> Table:
    table = _new("latency, ms", "mean", "p50", "p90", "p99")
    for side in sides:
        for key, name in names.items():
            spread = side["summary"].get(key)
            if spread:
                label = f"{side['name']} {name}" if len(sides) > 1 else name
                table.add_row(escape(label), *(number(spread[k], 2) for k in ("mean", "p50", "p90", "p99")))
        summary = side["summary"]
        good = summary.get("goodput")
        if good:
            table.add_row("goodput, requests/s", number(good["requests_per_s"], 2))
        if "peak_concurrency" in summary:
            table.add_row("peak concurrency", number(summary["peak_concurrency"], 0))
    return table


def _replacements(sides: list[Json]) -> Table:
    table = _new("replaced op", "set", "rank", "calls", "status")
    for side in sides:
        for line in side["replacements"]:
            rank = line.get("rank")
            cells = (line["op"], line["set"], "0" if rank is None else str(rank), str(line["num_calls"]))
            table.add_row(*map(escape, cells), line["status"])
    return table


def _comparisons(found: list[Json], names: dict[str, str] | None) -> Table:
    """names: of the latencies, of a model that makes no tokens."""
    kept = [key for key in names or () if key != "prepare"]
    told: tuple[str, ...] = ("equal tokens", "first difference")
    if names is not None:
        told = (*(names[key].lower() for key in kept), "equal digests")
    table = _new("against the baseline, run before it", "speed", *told)
    for line in found:
        faster = number(line["speed"] and line["speed"]["ratio"], 3) if line["has_replaced"] else "nothing replaced"
        if names is not None:
            ratios = (number(line["latency"].get(key), 3) for key in kept)
            equal = f"{sum(line['has_equal_digests'])} of {len(line['has_equal_digests'])}"
            table.add_row(escape(line["side"]), faster, *ratios, equal)
            continue
        tokens = line["tokens"][0] if line["tokens"] else None
        place = tokens and tokens["first_difference"]
        table.add_row(
            escape(line["side"]), faster,
            share(tokens["share_equal"]) if tokens else ("equal texts" if all(line["has_equal_digests"]) else "-"),
            f"request {place[0]}, token {place[1]}" if place else "none" if tokens else "-",
        )  # fmt: skip
    return table


def _outputs(line: Json) -> Table:
    table = _new(f"outputs of {line['side']}", "pairs", "equal", "unlike", "largest relative error", "least cosine")
    for found in line["outputs"]:
        error = found["largest_relative_error"]
        table.add_row(
            escape(found["name"]), str(found["num_pairs"]), str(found["num_equal"]), str(found["num_unlike"]),
            "-" if error is None else f"{error:.2e}", number(found["least_cosine"], 8),
        )  # fmt: skip
    return table
