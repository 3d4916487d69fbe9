"""A run made visible: report.html in its folder, and a record in MLflow."""

from __future__ import annotations

import importlib.util
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from fastkernels.bench.run_folder import RunFolder
from fastkernels.errors import UsageError
from fastkernels.report.e2e_page import render_e2e
from fastkernels.report.eval_page import render_eval
from fastkernels.report.html import render

INSTALL_TRACKING = "pip install 'fastkernels[track]'"


def publish(run: Path, *, mlflow_uri: str | None = None, is_tracked: bool = True) -> Path:
    """Write report.html into `run`, log the run to MLflow, and return the report's path.

    What fails here is a warning on stderr: results.json is there, and `fastkernels report` can try again.
    Errors: RunFolderError.
    """
    results = RunFolder(run).results()  # of this program's own: what no page shows is a warning below
    path = run / "report.html"
    try:
        write_page(path, render_run(results))
    except OSError as error:
        _warn(f"{path} was not written: {error.strerror or error}. When there is room: fastkernels report {run}")
    except Exception as error:
        # A figure that a page cannot show; whoever ran it for hours still gets the table and the exit code.
        _warn(f"{path} could not be made ({_first_line(error)}). The run itself is kept in {run}.")
    if is_tracked:
        _track(run, results, mlflow_uri)
    return path


def render_run(results: dict[str, Any]) -> str:
    """The page of a run, by what kind it is."""
    renderers = {"e2e": render_e2e, "eval": render_eval}
    return renderers.get(results["kind"], render)(results)


def check_page(path: Path) -> None:
    """Whether write_page can put a file there, once the folders on the way are made; for before what takes its time.

    Errors: UsageError names what stands in its way.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder where a file is due; name another place.")
    there = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not there.is_dir():
        raise UsageError(f"{there} is a file, so {path.name} cannot go into it; name another place.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{there} cannot be written, so {path} cannot be made; name another place.")


def write_page(path: Path, text: str) -> None:
    """Under a temporary name first, so that a full disk leaves the old page; no other writer of the page has it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _track(run: Path, results: dict[str, Any], uri: str | None) -> None:
    if not is_mlflow_installed():
        _warn(f"MLflow is not installed, so this run was not logged there. {INSTALL_TRACKING}, or --no-track.")
        return
    from fastkernels.report.e2e_track import log_e2e
    from fastkernels.report.eval_track import log_eval, nest_sweep
    from fastkernels.report.track import log_run

    loggers = {"e2e": log_e2e, "eval": log_eval}
    try:
        loggers.get(results["kind"], log_run)(run, results, uri)
        if results["kind"] not in loggers:
            nest_sweep(results, uri)
    except Exception as error:
        # Whatever a store, a server or a disk does wrong, the run itself is done and kept.
        _warn(f"MLflow did not take the run ({_first_line(error)}). The report is not affected.")


def is_mlflow_installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("mlflow", "sqlalchemy", "alembic"))


def _first_line(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:300]}"


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
