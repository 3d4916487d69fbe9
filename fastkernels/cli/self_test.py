"""`fastkernels kernels --self-test`: the adversarial suite on the user's machine."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fastkernels import env
from fastkernels.adversarial.self_test import Result, chosen_items, run, summary
from fastkernels.bench.environment import environment
from fastkernels.bench.sweep import require_device
from fastkernels.cli.common import console, error_console
from fastkernels.errors import EXIT_NOT_PASSED, EXIT_OK


def self_test(device: str, out: Path | None, names: Sequence[str] = ()) -> int:
    """Judge every cheat and every honest twin that `device` can run; the exit code says whether all are as they should.

    out: a folder (or a .json file) for self_test.json; a new folder under the runs' home when left out.
    names: only these files of the suite.
    Errors: EnvironmentProblem when the device is missing; UnknownNameError for a name that is none of the suite.
    """
    require_device(device)
    chosen_items(device, names)
    machine = environment(device)
    started, path = time.monotonic(), _path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []

    def keep() -> None:
        """As soon as it is there: a process that is killed runs no `finally`."""
        record = {
            "schema_version": 1,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": machine,
            "summary": summary(results),
            "seconds": round(time.monotonic() - started, 1),
            "results": [result.to_json() for result in results],
        }
        temporary = path.with_name(f".{path.name}.partial")
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        temporary.replace(path)

    keep()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=error_console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(result: Result, number: int, total: int) -> None:
            results.append(result)
            keep()
            bar.update(task, description=result.name, completed=number, total=total)
            console.print(_line(result), soft_wrap=True)

        run(device, show, names)
    console.print(f"results: {path}", soft_wrap=True)
    console.print(summary(results))
    return EXIT_OK if all(result.is_right for result in results) else EXIT_NOT_PASSED


def _line(result: Result) -> str:
    mark = "[green]ok[/]   " if result.is_right else "[bold red]WRONG[/]"
    what = "cheat" if result.is_cheat else "twin "
    text = f"{mark} {what} {escape(result.name)}: {result.outcome} ({result.seconds:.1f} s)"
    if not result.is_right:
        wanted = " or ".join(result.accepted)
        text += f"\n      expected {wanted}; {escape(result.message[:600]) or 'every answer and time was believed'}"
    return text


def _path(out: Path | None) -> Path:
    if out is None:
        return env.home() / f"{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}-self-test" / "self_test.json"
    return out if out.suffix == ".json" else out / "self_test.json"
