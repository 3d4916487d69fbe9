"""The verdicts of a run as a terminal table."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastkernels.harness.verdict import Speed, Verdict
from fastkernels.report.cases import told_apart
from fastkernels.report.view import headline, is_traceback

_COLOURS = {Speed.WIN: "green", Speed.LOSS: "red", Speed.TIE: "yellow"}


def print_verdicts(console: Console, results: dict[str, Any]) -> None:
    """The table, the noise floor, and what is wrong with each that did not pass, unabridged but for tracebacks."""
    console.print(verdict_table(results))
    floors = [t["noise_floor"] for r in results["ops"] if r["verdict"] == Verdict.PASSED for t in r["timings"]]
    if floors:
        low, high = (f"{100 * floor:.1f} %" for floor in (min(floors), max(floors)))
        shown = low if low == high else f"{low} to {high}"
        console.print(f"Noise floor: {shown}. WIN and LOSS need the whole interval beyond it.", soft_wrap=True)
    for record in results["ops"]:
        if record["verdict"] != Verdict.PASSED:
            text = f"[bold]{escape(record['op'])} ({escape(record['implementation'])}):[/] {escape(_told(record))}"
            console.print(text, soft_wrap=True)


def _told(record: dict[str, Any]) -> str:
    message: str = record["message"].strip()
    return headline(message) if is_traceback(message) else message


def verdict_table(results: dict[str, Any]) -> Table:
    """One row a judgement and timed case: verdict, speed with its interval, share of the roofline."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for name in ("op", "set", "verdict"):
        table.add_column(name, overflow="fold", min_width=8)
    table.add_column("case", max_width=20, no_wrap=True, overflow="ellipsis")
    for name, width in (("base us", 7), ("us", 6), ("speedup", 7), ("95 % interval", 9), ("", 4), ("% roof", 3)):
        table.add_column(name, justify="right", min_width=width)
    for record in results["ops"]:
        is_passed = record["verdict"] == Verdict.PASSED
        verdict = f"[{'green' if is_passed else 'bold red'}]{record['verdict']}[/]"
        if not record["timings"] or not is_passed:
            table.add_row(record["op"], record["implementation"], verdict)
            continue
        for index, timing in enumerate(record["timings"]):
            head = (record["op"], record["implementation"], verdict) if index == 0 else ("", "", "")
            table.add_row(*head, escape(_case(timing, record["timings"])), *_figures(timing))
    return table


def _case(timing: dict[str, Any], others: list[dict[str, Any]]) -> str:
    """The phase, what of the constructor's arguments tells it apart, and the first argument's shape: a narrow cell."""
    first = timing["shapes"].split("]")[0]
    return " ".join(filter(None, (timing["phase"], told_apart(timing, others), f"{first}]")))


def _figures(timing: dict[str, Any]) -> tuple[str, ...]:
    speed = timing["speed"]
    return (
        f"{timing['baseline_us']:.1f}",
        f"{timing['candidate_us']:.1f}",
        f"{timing['ratio']:.2f}",
        f"{timing['low']:.2f}-{timing['high']:.2f}",
        f"[{_COLOURS[Speed(speed)]}]{speed}[/]",
        f"{100 * timing['candidate_roofline_share']:.0f}",
    )


def first_line(message: str, width: int = 100) -> str:
    """What a cell has room for."""
    line = headline(message)
    return line if len(line) <= width else line[: width - 1] + "…"
