"""`fastkernels kernels` (alias `bench`): judge candidate kernels, correctness first, then speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typer import Option

from fastkernels.bench.resume import words_of
from fastkernels.bench.run_folder import RunFolder
from fastkernels.bench.sweep import Item, Sweep, plan_items, resumed_run, run_sweep, start_run
from fastkernels.bench.sweep import Progress as SweepProgress
from fastkernels.capture.store import CaseSet
from fastkernels.cli.common import console, error_console, placed, print_json, tell_log
from fastkernels.cli.select import select_ops
from fastkernels.cli.table import first_line, print_verdicts
from fastkernels.errors import EXIT_JUDGE_ERROR, EXIT_NOT_PASSED, EXIT_OK, UsageError
from fastkernels.harness.judge import JudgeConfig
from fastkernels.harness.records import OpRecord
from fastkernels.harness.timing import Protocol
from fastkernels.harness.verdict import Verdict
from fastkernels.harness.workers import Limits
from fastkernels.registry import OpEntry
from fastkernels.report.load import find_run
from fastkernels.report.publish import publish
from fastkernels.sets import CANDIDATE, available_sets, resolve_set

_CALL_SECONDS, _GIGABYTES = 30.0, 16.0
_MOST_SECONDS, _MOST_GIGABYTES = 86_400, 1 << 20
_DEFAULTS: dict[str, Any] = {
    "candidates": [CANDIDATE],
    "quick": False,
    "check_only": False,
    "timeout": _CALL_SECONDS,
    "memory_gb": _GIGABYTES,
}
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def kernels(
    target: Annotated[
        list[str] | None,
        Option(help="An op by name, class or file (of the self-test: a file of the suite); repeatable."),
    ] = None,
    level: Annotated[int | None, Option(help="Ops of this level, 1 to 4.")] = None,
    architecture: Annotated[str | None, Option(help="Ops of this architecture.")] = None,
    candidates: Annotated[list[str] | None, Option(help="A set by name or a directory; repeatable.")] = None,
    cases: Annotated[Path | None, Option(help="A case set written by `fastkernels capture`.")] = None,
    device: Annotated[str | None, Option(help="cpu or cuda; the GPU when there is one.")] = None,
    dtype: Annotated[
        list[str] | None,
        Option(
            help="Activation dtypes of drawn inputs; repeatable. When left out float32, on a GPU bfloat16, and of an "
            "op that does not take it the first that it takes."
        ),
    ] = None,
    quick: Annotated[
        bool | None, Option("--quick", help="A first look: one restart, few blocks, fewer hidden shapes.")
    ] = None,
    check_only: Annotated[bool | None, Option("--check-only", help="Correctness alone, no timing.")] = None,
    timeout: Annotated[
        float | None,
        Option(
            help="Seconds one call may take; the first on new shapes or weights may take ten times as long.",
            show_default=f"{_CALL_SECONDS:g}",
        ),
    ] = None,
    memory_gb: Annotated[
        float | None, Option(help="Gigabytes one worker may use.", show_default=f"{_GIGABYTES:g}")
    ] = None,
    out: Annotated[Path | None, Option(help="The run folder; a new one under ./runs when left out.")] = None,
    resume: Annotated[
        Path | None, Option(help="A run to go on with, by folder or name; words that are left out are its own.")
    ] = None,
    self_test: Annotated[bool, Option("--self-test", help="Judge the adversarial suite instead.")] = False,
    mlflow_uri: Annotated[str | None, Option(help="An MLflow server; a local sqlite file when left out.")] = None,
    no_track: Annotated[bool, Option("--no-track", help="Log nothing to MLflow.")] = False,
    as_json: Annotated[bool, Option("--json", help="results.json on stdout.")] = False,
) -> int:
    """Judge candidate kernels, correctness first, then speed. Exit code 1 when any verdict is not PASSED."""
    if resume is not None and out is not None:
        raise UsageError("--out names a new run folder and --resume one that is there: give one of them.")
    words = {
        "target": target,
        "level": level,
        "architecture": architecture,
        "candidates": None if candidates is None else [placed(name, available_sets()) for name in candidates],
        "cases": None if cases is None else placed(str(cases), ()),
        "device": device,
        "dtype": dtype,
        "quick": quick,
        "check_only": check_only,
        "timeout": timeout,
        "memory_gb": memory_gb,
    }
    if self_test:
        from fastkernels.cli.self_test import self_test as run_self_test

        told = {name: value for name, value in words.items() if name not in ("target", "device")}
        _refuse_beside_self_test({**told, "resume": resume, "mlflow_uri": mlflow_uri, "json": as_json})
        return run_self_test(_device(device), out, target or ())
    before = None if resume is None else RunFolder(find_run(resume))
    sweep = _sweep(words if before is None else words_of(before, "kernels", words))
    folder = start_run(sweep, out) if before is None else resumed_run(sweep, before.path)
    try:
        results = judge_items(sweep, folder)
    finally:  # an interrupted run has a report of what it finished
        report = publish(folder.path, mlflow_uri=mlflow_uri, is_tracked=not no_track)
    if as_json:
        print_json(results)
    else:
        print_verdicts(console, results)
        console.print(f"report: {report}\nrun:    {folder.path}", soft_wrap=True)
    named = sweep.request["target"]
    for warning in _warnings(results, select_ops(named, level, architecture) if named else []):
        error_console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    return _exit_code(results)


def _sweep(words: dict[str, Any]) -> Sweep:
    """Errors: UsageError and those of names, sets and cases."""
    asked = {**words, "device": _device(words["device"])}
    asked |= {name: asked[name] if asked[name] is not None else value for name, value in _DEFAULTS.items()}
    _check_limits(asked["timeout"], asked["memory_gb"])
    entries = select_ops(asked["target"], asked["level"], asked["architecture"])
    return Sweep(
        items=plan_items(entries, [resolve_set(name) for name in asked["candidates"]]),
        config=_config(asked["device"], asked["dtype"], quick=asked["quick"], is_timed=not asked["check_only"]),
        cases=CaseSet.load(Path(asked["cases"])) if asked["cases"] else None,
        limits=Limits(call_seconds=asked["timeout"], memory_bytes=int(asked["memory_gb"] * (1 << 30))),
        request=asked,
    )


def _refuse_beside_self_test(given: dict[str, Any]) -> None:
    """Errors: UsageError for words that the suite's judgements would not heed."""
    if named := [f"--{name.replace('_', '-')}" for name, value in given.items() if value not in (None, False, [])]:
        raise UsageError(
            f"--self-test judges the suite as it is; it does not take {', '.join(named)}. Beside it stand --device, "
            "--out (its results are self_test.json there) and --target with names of the suite's files."
        )


def _device(given: str | None) -> str:
    """Errors: UsageError."""
    device = given or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device} is not cpu or cuda; which GPU is used, CUDA_VISIBLE_DEVICES says.")
    return device


def _check_limits(timeout: float, memory_gb: float) -> None:
    """Errors: UsageError."""
    for name, value, most in (("--timeout", timeout, _MOST_SECONDS), ("--memory-gb", memory_gb, _MOST_GIGABYTES)):
        if not 0 < value <= most:
            raise UsageError(f"{name} is {value:g}; it is above 0 and at most {most}.")


def _warnings(results: dict[str, Any], named: Sequence[OpEntry]) -> list[str]:
    """What the verdicts do not say: ops asked for by name that no set has, and protections not in force."""
    judged = {record["op"] for record in results["ops"]}
    found = []
    if missing := [entry.name for entry in named if entry.name not in judged]:
        found.append(f"Not judged, because no set has them: {', '.join(missing)}.")
    off = {name for r in results["ops"] for name, holds in r["confinement"].items() if holds is False}
    if off:
        words = ", ".join(sorted(name.replace("_", " ") for name in off))
        found.append(f"This machine does not grant workers: {words}. Judge only candidates that you trust here.")
    return found


def _exit_code(results: dict[str, Any]) -> int:
    failed = [r for r in results["ops"] if r["verdict"] == Verdict.JUDGE_ERROR]
    for record in failed:
        what = f"The judge itself failed on {record['op']} ({record['implementation']})"
        error_console.print(
            f"[bold red]error:[/] {escape(what)}: {escape(first_line(record['message']))}", soft_wrap=True
        )
    if failed:
        return EXIT_JUDGE_ERROR
    return EXIT_OK if all(r["verdict"] == Verdict.PASSED for r in results["ops"]) else EXIT_NOT_PASSED


def _config(device: str, dtypes: list[str] | None, *, quick: bool, is_timed: bool) -> JudgeConfig:
    names = dtypes or (["bfloat16"] if device.startswith("cuda") else ["float32"])
    for name in names:
        if name not in _DTYPES:
            raise UsageError(f"--dtype {name} is not one of {', '.join(_DTYPES)}.")
    return JudgeConfig(
        device=device,
        dtypes=tuple(_DTYPES[name] for name in names),
        takes_others=dtypes is None,
        num_shapes=3 if quick else 6,
        num_captured=8 if quick else 24,
        num_timed=1 if quick else 3,
        protocol=Protocol.quick() if quick else Protocol(),
        is_timed=is_timed,
    )


def judge_items(sweep: Sweep, folder: RunFolder) -> dict[str, Any]:
    """Run a sweep under a progress bar: the op, its case and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=error_console, transient=True) as bar:
        task = bar.add_task("starting", total=len(sweep.items), count="")
        name, num_ended = "", 0

        def begins(item: Item, number: int, total: int) -> None:
            nonlocal name, num_ended
            name, num_ended = f"{item[0].name} ({item[1].name})", number
            bar.update(task, description=escape(name), completed=number, count=f"{number} of {total} ops")

        def stage(text: str, share: float) -> None:
            bar.update(task, description=escape(f"{name}: {text}"), completed=num_ended + share)

        def ends(record: OpRecord) -> None:
            total, done = len(sweep.items), num_ended + 1
            bar.update(task, completed=done, count=f"{done} of {total} ops")
            told = f"{done} of {total}: {record.op} ({record.implementation})"
            tell_log(f"{told} {record.verdict}, {record.seconds:.1f} s")

        return run_sweep(sweep, folder, SweepProgress(begins, stage, ends))
