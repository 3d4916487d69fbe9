"""`fastkernels report`: show a run, or compare two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rich.markup import escape
from rich.table import Table
from typer import Argument, Option

from fastkernels.cli.accounting import accounting_tables
from fastkernels.cli.common import console, print_json
from fastkernels.cli.e2e_table import e2e_tables
from fastkernels.cli.eval_table import eval_tables
from fastkernels.cli.table import print_verdicts
from fastkernels.errors import UsageError
from fastkernels.report.compare import Change, Comparison, compare_runs, hardware
from fastkernels.report.compare_page import render_comparison, render_e2e_comparison, significant
from fastkernels.report.damage import blaming
from fastkernels.report.e2e_compare import E2EComparison, FigureChange, compare_e2e
from fastkernels.report.eval_compare import compare_evals
from fastkernels.report.load import find_run, load_results
from fastkernels.report.publish import render_run, write_page

_TABLES = {"e2e": e2e_tables, "eval": eval_tables}
_COLOURS = {
    "faster": "green",
    "better": "green",
    "now passes": "green",
    "slower": "red",
    "worse": "red",
    "no longer passes": "bold red",
}


def report(
    run: Annotated[Path, Argument(help="A run folder, or its name under ./runs.")],
    run2: Annotated[Path | None, Argument(help="A later run to compare it with.")] = None,
    force: Annotated[bool, Option(help="Compare runs of different hardware all the same.")] = False,
    as_json: Annotated[bool, Option("--json", help="The results, or the comparison, on stdout.")] = False,
) -> None:
    """Show a run and write its report.html; or compare two and write compare.html into the second."""
    folder = find_run(run)
    if run2 is None:
        with blaming(folder):
            _show(folder, load_results(folder), as_json=as_json)
        return
    later = find_run(run2)
    with blaming(f"{folder} or {later}"):
        _compare(folder, later, is_forced=force, as_json=as_json)


def _show(folder: Path, results: dict[str, Any], *, as_json: bool) -> None:
    path = folder / "report.html"
    write_page(path, render_run(results))
    if as_json:
        print_json(results)
        return
    if results["status"] != "finished":
        console.print(f"[yellow]{escape(results['run_id'])} is {escape(results['status'])}: this is what there is.[/]")
    if results["kind"] in _TABLES:
        for table in _TABLES[results["kind"]](results):
            console.print(table)
    elif results["ops"]:
        print_verdicts(console, results)
    else:
        console.print("Nothing was judged.")
    for table in accounting_tables(results):
        console.print(table)
    console.print(f"report: {path}", soft_wrap=True, markup=False)


def _compare(first: Path, second: Path, *, is_forced: bool, as_json: bool) -> None:
    before, after = load_results(first), load_results(second)
    if before["kind"] != after["kind"] and {"e2e", "eval"} & {before["kind"], after["kind"]}:
        raise UsageError(f"{first} is a run of {before['kind']}, {second} of {after['kind']}: they do not compare.")
    _check_manifests(first, second, before, after, is_forced=is_forced)
    if hardware(before) != hardware(after) and not is_forced:
        raise UsageError(
            f"{first} ran on {hardware(before)}, {second} on {hardware(after)}: their times do not compare. "
            "--force compares them all the same."
        )
    comparison: Comparison | E2EComparison
    if after["kind"] == "e2e":
        comparison = compare_e2e(before, after, is_forced=is_forced)
        page, table = render_e2e_comparison(comparison), _e2e_table(comparison.changes)
    else:
        comparison = (compare_evals if after["kind"] == "eval" else compare_runs)(before, after)
        page, table = render_comparison(comparison), _table(comparison.changes)
    path = second / "compare.html"
    write_page(path, page)
    if as_json:
        print_json(comparison.to_json())
        return
    for warning in comparison.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    console.print(table)
    if isinstance(comparison, E2EComparison):
        for side, is_equal in comparison.equal_outputs.items():
            console.print(f"Outputs of {escape(side)}: {'equal' if is_equal else '[bold red]unlike[/]'}.")
    num_changed = sum(change.is_changed for change in comparison.changes)
    console.print(f"{num_changed} of {len(comparison.changes)} changed.")
    console.print(f"comparison: {path}", soft_wrap=True, markup=False)


def _check_manifests(
    first: Path, second: Path, before: dict[str, Any], after: dict[str, Any], *, is_forced: bool
) -> None:
    old, new = (run.get("manifest") or {} for run in (before, after))
    if old != new and not is_forced:
        raise UsageError(
            f"{first} was judged by manifest {old.get('version')} ({str(old.get('sha256'))[:12]}), {second} by "
            f"{new.get('version')} ({str(new.get('sha256'))[:12]}): other answers count as right. "
            "--force compares them all the same."
        )


def _table(changes: list[Change]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("op", "set", "change", "verdict", "case"):
        table.add_column(name, no_wrap=name in ("op", "change"))
    for name in ("before", "after", "ratio", "95 % interval"):
        table.add_column(name, justify="right")
    for c in changes:
        colour = _COLOURS.get(c.change, "default")
        verdicts = [v or "-" for v in (c.verdict_before, c.verdict_after)]
        verdict = verdicts[0] if verdicts[0] == verdicts[1] else " -> ".join(verdicts)
        change = f"[{colour}]{c.change}[/]{' (source changed)' if c.is_source_changed else ''}"
        table.add_row(escape(c.op), escape(c.implementation), change, verdict, escape(c.case), *_figures(c))
    return table


def _e2e_table(changes: list[FigureChange]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("figure", "side", "change"):
        table.add_column(name)
    for name in ("before", "of repeats", "after", "of repeats", "times better"):
        table.add_column(name, justify="right")
    for c in changes:
        change = f"[{_COLOURS.get(c.change, 'default')}]{c.change}[/]"
        values = [part for pair in ((c.before, c.before_span), (c.after, c.after_span)) for part in _spread(*pair)]
        table.add_row(c.figure, escape(c.side), change, *values, "" if c.ratio is None else f"{c.ratio:.3f}")
    return table


def _spread(value: float | None, span: tuple[float, float] | None) -> tuple[str, str]:
    is_one = span is None or span[0] == span[1]
    return significant(value), "" if is_one else " .. ".join(map(significant, span or ()))


def _figures(change: Change) -> tuple[str, ...]:
    if change.ratio is None:
        return ("", "", "", "")
    return (
        f"{change.speedup_before:.3f}",
        f"{change.speedup_after:.3f}",
        f"{change.ratio:.3f}",
        f"{change.low:.3f} .. {change.high:.3f}",
    )
