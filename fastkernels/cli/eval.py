"""`fastkernels eval`: implementation sets inside whole models, over a set of scenarios (tier 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typer import Argument, Option

from fastkernels.bench.eval.implementations import read_sets
from fastkernels.bench.eval.run import EvalRun, Watcher, not_passed, read_manifest, resumed, run_eval
from fastkernels.bench.eval.scenario_file import find_scenario_set, scenario_sets
from fastkernels.bench.resume import words_of
from fastkernels.bench.run_folder import RunFolder
from fastkernels.bench.sweep import require_device
from fastkernels.cli.common import console, error_console, placed, print_json, tell_log
from fastkernels.cli.eval_table import eval_tables
from fastkernels.errors import EXIT_NOT_PASSED, EXIT_OK, UsageError
from fastkernels.report.load import find_run
from fastkernels.report.publish import publish
from fastkernels.sets import CANDIDATE, available_sets

_SETS = ", ".join(scenario_sets())


def evaluate(
    scenarios: Annotated[
        str | None, Argument(help=f"A scenario set: {_SETS}, or a YAML file. With --resume the run's own.")
    ] = None,
    model: Annotated[list[str] | None, Option(help="Only the set's scenarios of this model; repeatable.")] = None,
    candidates: Annotated[
        list[str] | None, Option(help="A set by name or a directory; each is judged by itself; repeatable.")
    ] = None,
    device: Annotated[str | None, Option(help="cpu or cuda; the GPU when there is one.")] = None,
    restarts: Annotated[
        int | None, Option(help="Fresh processes of each side; the scenario set says how many.")
    ] = None,
    resume: Annotated[
        Path | None, Option(help="A run to go on with, by folder or name; words that are left out are its own.")
    ] = None,
    out: Annotated[Path | None, Option(help="The run folder; a new one under ./runs when left out.")] = None,
    ray: Annotated[str | None, Option(help="Spread scenarios over this Ray cluster: an address, or auto.")] = None,
    mlflow_uri: Annotated[str | None, Option(help="An MLflow server; a local sqlite file when left out.")] = None,
    no_track: Annotated[bool, Option("--no-track", help="Log nothing to MLflow.")] = False,
    as_json: Annotated[bool, Option("--json", help="results.json on stdout.")] = False,
) -> int:
    """Judge implementation sets inside whole models: correctness, then throughput and latency, over fixed scenarios.

    Exit code 1 when an item is INVALID, NEVER_CALLED or not accurate.
    """
    words = {
        "scenarios": None if scenarios is None else placed(scenarios, scenario_sets()),
        "model": model,
        "candidates": None if candidates is None else [placed(name, available_sets()) for name in candidates],
        "device": device,
        "restarts": restarts,
    }
    if resume is not None and out is not None:
        raise UsageError("--out names a new run folder and --resume one that is there: give one of them.")
    folder = None if resume is None else RunFolder(find_run(resume))
    run = _run(words if folder is None else words_of(folder, "eval", words), ray)
    if folder is None:
        folder = run.start(out)
    else:
        run = resumed(run, folder)
    try:
        results = run_with_bar(run, folder)
    finally:  # an interrupted run has a report of what it finished
        report = publish(folder.path, mlflow_uri=mlflow_uri, is_tracked=not no_track)
    if as_json:
        print_json(results)
    else:
        for table in eval_tables(results):
            console.print(table)
        console.print(f"report: {report}\nrun:    {folder.path}", soft_wrap=True)
    found = not_passed(results)
    for sentence in found:
        error_console.print(f"[bold red]not passed:[/] {escape(sentence)}", soft_wrap=True)
    return EXIT_NOT_PASSED if found else EXIT_OK


def _run(words: dict[str, Any], ray: str | None) -> EvalRun:
    """Errors: those of the words."""
    if words["scenarios"] is None:
        raise UsageError(f"Name a scenario set: {_SETS}, or a YAML file; or --resume a run.")
    device = words["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    if ray is None:
        require_device(device)
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device} is not cpu or cuda; which GPUs are used, CUDA_VISIBLE_DEVICES says.")
    chosen = find_scenario_set(words["scenarios"])
    if words["restarts"] is not None:
        chosen = chosen.with_restarts(words["restarts"])
    if words["model"]:
        chosen = chosen.only(words["model"])
    sets = read_sets(words["candidates"] or [CANDIDATE])
    return EvalRun(chosen, sets, device, read_manifest(), ray=ray, request={**words, "device": device})


def run_with_bar(run: EvalRun, folder: RunFolder) -> dict[str, Any]:
    """Under a progress bar: the scenario, the set, the restart, and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=error_console, transient=True) as bar:
        task = bar.add_task("starting", total=None, count="")
        shares: dict[str, float] = {}

        def begins(name: str, number: int, total: int) -> None:
            shares[name] = 0.0
            tell_log(f"{name}: scenario {number + 1} of {total}")
            bar.update(task, description=escape(name), total=total, count=f"scenario {number + 1} of {total}")

        def stage(name: str, text: str, share: float) -> None:
            shares[name] = max(share, shares.get(name, 0.0))
            bar.update(task, description=escape(f"{name}: {text}"), completed=sum(shares.values()))

        def ends(record: dict[str, Any]) -> None:
            shares[record["item"]] = 1.0
            tell_log(f"{record['item']}: {record['implementation']} {record['outcome']}")
            bar.update(task, completed=sum(shares.values()))

        return run_eval(run, folder, Watcher(begins, stage, ends))
