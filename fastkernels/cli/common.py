"""What commands share: consoles, JSON, and how an error ends a command."""

from __future__ import annotations

import errno
import functools
import json
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastkernels.errors import EXIT_ENVIRONMENT, EXIT_INTERRUPTED, EXIT_USAGE, FastKernelsError
from fastkernels.optional import missing_package

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

# A pipe has no width of its own: wide enough there that no name is folded.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
error_console = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """To stdout and nothing else there, so that a program can read it."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def figure_table(*columns: str) -> Table:
    """Without lines: names in the first column, figures to the right in the others."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    return table


def tell_log(line: str) -> None:
    """How far a run is, on stderr, where that is a log and shows no progress bar."""
    if not error_console.is_terminal:
        error_console.print(line, soft_wrap=True, markup=False)


def stop(message: str, exit_code: int) -> SystemExit:
    """Say why a command ends; raise what this returns."""
    error_console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    return SystemExit(exit_code)


def placed(name: str, known: Collection[str]) -> str:
    """A path as it is found from anywhere, since a run can be gone on with from another folder; a known name stays."""
    return str(Path(name).resolve()) if name not in known and Path(name).exists() else name


def reports_errors(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """A user's mistake or the machine's trouble is one message and an exit code, never a traceback.

    A command may return its exit code.
    """

    @functools.wraps(function)
    def guarded(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        try:
            result = function(*args, **kwargs)
        except FastKernelsError as error:
            raise stop(str(error), error.exit_code) from error
        except ModuleNotFoundError as error:
            missing = missing_package(error)
            if missing is None:
                raise
            raise stop(str(missing), missing.exit_code) from error
        except KeyboardInterrupt as error:
            raise stop("Interrupted. What was written before is kept.", EXIT_INTERRUPTED) from error
        except OSError as error:
            if error.errno in _WRONG_PLACE and error.filename:
                raise stop(f"{error.filename} cannot be used: {_WRONG_PLACE[error.errno]}.", EXIT_USAGE) from error
            if error.errno not in _MACHINE_TROUBLE:
                raise
            message = f"{_MACHINE_TROUBLE[error.errno]}: {error.filename or error}. What was written before is kept."
            raise stop(message, EXIT_ENVIRONMENT) from error
        if isinstance(result, int) and result:
            raise SystemExit(result)
        return result

    return guarded


_WRONG_PLACE = {
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder where a file is due",
    errno.EEXIST: "a file is there where a folder is due",
}
_MACHINE_TROUBLE = {
    errno.ENOSPC: "The disk is full",
    errno.EDQUOT: "The disk quota is used up",
    errno.EMFILE: "Too many files are open in one process (ulimit -n says how many may be)",
    errno.ENFILE: "Too many files are open on this machine (see /proc/sys/fs/file-max)",
    errno.EACCES: "No permission to write or read",
    errno.EROFS: "The file system is read-only",
}
