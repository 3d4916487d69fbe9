"""`fastkernels capture`: run a model on a workload and keep its ops' calls as cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from typer import Option

from fastkernels.capture.run import Calls, CaptureInterrupted
from fastkernels.capture.run import capture as capture_model
from fastkernels.capture.store import CaseSet, check_folder
from fastkernels.capture.tensors import named_tensors
from fastkernels.cli.common import console, error_console, print_json
from fastkernels.cli.select import select_ops
from fastkernels.errors import UsageError
from fastkernels.workloads import WORKLOADS, find_workload

_WORKLOADS = ", ".join(workload.name for workload in WORKLOADS)


def capture(
    model: Annotated[str, Option(help="A checkpoint directory, a config.json, or a preset such as tiny-llama.")],
    out: Annotated[Path, Option(help="The folder that takes the case set.")],
    workload: Annotated[str, Option(help=f"One of {_WORKLOADS}.")] = "demo",
    scale: Annotated[float, Option(help="Times the workload's lengths: below 1 for a tiny model.")] = 1.0,
    num_requests: Annotated[int | None, Option(help="Requests; the workload's own number when left out.")] = None,
    ops: Annotated[list[str] | None, Option(help="Ops by name, repeated or with commas; all when left out.")] = None,
    level: Annotated[int | None, Option(help="Ops of this level, 1 to 4.")] = None,
    keep: Annotated[int, Option(help="Cases of different values per op, shapes, dtypes and phase.")] = 1,
    budget_mb: Annotated[int, Option(help="Megabytes of float values; past that, seeded moments.")] = 256,
    dtype: Annotated[str | None, Option(help="float32, bfloat16 or float16; the model's own when left out.")] = None,
    device: Annotated[str | None, Option(help="cpu or cuda; the GPU when there is one.")] = None,
    temperature: Annotated[float, Option(help="0 is greedy.")] = 0.0,
    max_num_batched_tokens: Annotated[int, Option(help="Tokens in one step; fewer give more mixed steps.")] = 512,
    seed: Annotated[int, Option(help="Of random weights and of sampling.")] = 0,
    as_json: Annotated[bool, Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Run a model on a workload and keep its ops' calls as cases."""
    if keep < 1 or budget_mb < 0:
        raise UsageError(f"--keep is {keep} (at least 1), --budget-mb is {budget_mb} (at least 0).")
    check_folder(out)
    targets = [name for text in ops or [] for name in text.split(",") if name]
    chosen = [entry.name for entry in select_ops(targets, level, None)] if targets or level is not None else None
    traffic = find_workload(workload).scaled(scale)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=error_console, transient=True) as bar:
        task = bar.add_task(f"{model} on {workload}", total=None)
        try:
            cases, calls, _ = capture_model(
                model,
                traffic if num_requests is None else traffic.limited(num_requests),
                ops=chosen,
                keep=keep,
                budget_mb=budget_mb,
                dtype=dtype,
                device=device,
                seed=seed,
                temperature=temperature,
                max_num_batched_tokens=max_num_batched_tokens,
                progress=lambda done, most: bar.update(task, completed=done, total=most),
            )
        except CaptureInterrupted as interrupt:
            if interrupt.cases.records:
                interrupt.cases.save(out)
                error_console.print(f"{out}: {len(interrupt.cases)} cases of the steps before.", soft_wrap=True)
            raise
        if not cases.records:
            wanted = f"none of {', '.join(chosen)}" if chosen else "no op"
            raise UsageError(
                f"{cases.model} on {cases.workload} called {wanted}: there is nothing to write to {out}. Without "
                "--ops and --level all that it calls is captured and listed."
            )
        bar.update(task, description=f"writing {out}")
        cases.save(out)
    rows = summary(cases, calls)
    if as_json:
        print_json({"out": str(out), "model": cases.model, "workload": cases.workload, "rows": rows})
    else:
        _show(rows, cases, out)


def summary(cases: CaseSet, calls: Calls) -> list[dict[str, str | int]]:
    """One row per op and phase, in the order of first calls; bytes of distinct tensors."""
    rows: list[dict[str, str | int]] = []
    for (op, phase), num_calls in calls.items():
        records = [case for case in cases.records if (case.op, case.phase) == (op, phase)]
        tensors = {id(t): t for case in records for t in named_tensors(case).values() if t.device.type != "meta"}
        num_bytes = sum(t.numel() * t.element_size() for t in tensors.values())
        row = {"op": op, "phase": phase or "", "cases": len(records), "calls": num_calls, "bytes": num_bytes}
        rows.append({**row, "drawn": sum(bool(case.moments) for case in records)})
    return rows


def _show(rows: list[dict[str, str | int]], cases: CaseSet, out: Path) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("op")
    table.add_column("phase")
    for column in ("cases", "calls", "kB"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(str(row[c]) for c in ("op", "phase", "cases", "calls")), f"{int(row['bytes']) / 1000:.1f}")
    console.print(table)
    size = sum(path.stat().st_size for path in out.iterdir())
    num_calls = sum(int(row["calls"]) for row in rows)
    drawn = sum(int(row["drawn"]) for row in rows)
    note = f", {drawn} with values drawn from moments (raise --budget-mb)" if drawn else ""
    console.print(
        f"{len(cases)} cases of {num_calls} calls of {len(cases.ops)} ops{note}: {out} ({size / 1e6:.1f} MB)",
        soft_wrap=True,
    )
