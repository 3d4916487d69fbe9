"""A file that was checked and still cannot be shown is one message that names it, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jinja2

from fastkernels.errors import InputFileError, RunFolderError

_SIGNS = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError, jinja2.UndefinedError)
"""Of values that no check foresaw: a time of 1e300 s is finite, and its square is not."""


@contextmanager
def blaming(path: Path | str, kind: type[InputFileError] = RunFolderError) -> Iterator[None]:
    """Around figures and pages made of what `path` holds. Errors: `kind` in place of what a damaged file leads to."""
    try:
        yield
    except _SIGNS as error:
        what = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
        raise kind(f"{path} holds what cannot be shown ({what}); it is damaged.") from error
