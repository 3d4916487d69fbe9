"""An eval run as tables in a terminal: what a user gains first, the published score beside it, then each item."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.markup import escape
from rich.table import Table

from fastkernels.cli.common import figure_table
from fastkernels.cli.table import first_line
from fastkernels.scoring.items import Outcome

Json = dict[str, Any]

_COLOURS = {"WIN": "green", "LOSS": "red", "TIE": "yellow"}
_DEFAULT_BLEND = "0.5"


def eval_tables(results: Json) -> list[Table]:
    """Deployable speedup and MacroEval, a row a set; items, a row each; ops at fault, where any were found."""
    scores = results.get("scores") or {}
    rows = _with_parts(scores, results.get("subset_scores") or {})
    tables = [_deployable(rows), _macroeval(rows), _items(results, scores)] if scores else []
    if any(item["subset"] for item in results["items"]):
        tables.append(_at_fault(results["items"]))
    return tables


def _with_parts(scores: Json, of_parts: Json) -> Json:
    """Below each set that broke a model, the same set with the ops at fault left out."""
    rows: Json = {}
    for name, score in scores.items():
        rows[name] = score
        if name in of_parts:
            rows[f"{name}, without the ops at fault"] = of_parts[name]
    return rows


def _deployable(scores: Json) -> Table:
    table = figure_table("set", "deployable speedup", "95 % interval", "valid items", "wins", "losses", "ties")
    for name, score in scores.items():
        found = score["deployable"]
        table.add_row(
            escape(name), f"[bold]{found['speedup']:.3f}[/]", f"{found['low']:.3f} .. {found['high']:.3f}",
            f"{found['num_valid']} of {found['num_items']} ({100 * found['validity']:.0f} %)",
            *(str(found[key]) for key in ("num_wins", "num_losses", "num_ties")),
        )  # fmt: skip
    return table


def _macroeval(scores: Json) -> Table:
    table = figure_table(
        "MacroEval", "score", "speedup", "95 % interval", "correctness", "coverage", "latency", "throughput"
    )
    for name, score in scores.items():
        found, macro = score["macroeval"], score["intervals"]["macro"]["targets"]
        default = found[_DEFAULT_BLEND]
        table.add_row(
            escape(name), _number(default["score"]), _number(default["speedup"]), _interval(macro),
            _number(default["correctness"]), _number(default["coverage_macro"]),
            *(_number(found[blend]["speedup"]) for blend in ("0.0", "1.0")),
        )  # fmt: skip
    return table


def _items(results: Json, scores: Json) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for name in ("item", "set", "outcome"):
        table.add_column(name, overflow="fold")
    for name in ("C", "throughput", "latency", "both", "95 % interval", ""):
        table.add_column(name, justify="right")
    rows = {(row["item"], name): row for name, score in scores.items() for row in score["intervals"]["items"]}
    never = Counter(i["implementation"] for i in results["items"] if i["outcome"] == Outcome.NEVER_CALLED)
    for item in results["items"]:
        if item["outcome"] == Outcome.NEVER_CALLED:
            continue
        row = rows[item["item"], item["implementation"]]
        head = (escape(item["item"]), escape(item["implementation"]), _outcome(item, row))
        if item["outcome"] != Outcome.MEASURED:
            table.add_row(*head)
            continue
        speedup = row["speedup"]
        verdict = row["verdict"]
        table.add_row(
            *head, _number(row["correctness"]), *(_number(speedup[blend]) for blend in ("1.0", "0.0", "0.5")),
            _interval(row["interval"]), f"[{_COLOURS[verdict]}]{verdict}[/]" if verdict else "",
        )  # fmt: skip
    for name, count in never.items():
        table.add_row(f"{count} item{'s' if count > 1 else ''}", escape(name), f"[bold red]{Outcome.NEVER_CALLED}[/]")
    return table


def _outcome(item: Json, row: Json) -> str:
    if item["outcome"] == Outcome.MEASURED:
        if not item["is_complete"]:
            return "[yellow]incomplete[/]"
        return "[green]valid[/]" if row["verdict"] else "[bold red]not accurate[/]"
    reason = f" {item['reason']}" if item["reason"] else ""
    colour = "yellow" if item["outcome"] == Outcome.BLOCKED else "bold red"
    return f"[{colour}]{item['outcome']}{reason}[/]"


def _at_fault(items: list[Json]) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for name in ("item", "set", "ops at fault", "kept", "runs"):
        table.add_column(name, overflow="fold")
    for item in items:
        subset = item["subset"]
        if subset:
            faults = "; ".join(f"{op}: {first_line(reason)}" for op, reason in subset["at_fault"].items())
            kept = ", ".join(subset["kept"]) or "nothing"
            cells = (item["item"], item["implementation"], faults or "none found", kept, str(subset["num_runs"]))
            table.add_row(*map(escape, cells))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(bounds: Json | None) -> str:
    if not bounds or bounds.get("low") is None:
        return "-"
    return f"{bounds['low']:.3f} .. {bounds['high']:.3f}"
