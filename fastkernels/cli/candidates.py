"""Whose fault it is when a model with candidates ends in an error."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fastkernels.errors import CandidateError, FastKernelsError
from fastkernels.loading import frame_in
from fastkernels.sets import ImplementationSet

_LAST_FRAMES = -2
"""Of a traceback without a frame of a candidate: enough to see where a wrong answer of one ended the model."""


@contextmanager
def candidates_at_fault(sets: Sequence[ImplementationSet]) -> Iterator[None]:
    """Around a model that is built with candidates, or runs with them in this process.

    Errors: CandidateError, with the candidate's part of the traceback, for what a candidate raises, its SystemExit too,
    and for what ends the model without a frame of theirs, except for trouble of the machine.
    """
    try:
        yield
    except FastKernelsError:
        raise
    except (Exception, SystemExit) as error:
        if not sets:
            raise
        for implementations in sets:
            if frame := frame_in(implementations.path, error):
                shown = "".join(traceback.format_exception(type(error), error, frame)).rstrip()
                raise CandidateError(f"The set {implementations.name!r} ended the run.\n{shown}") from error
        if isinstance(error, OSError | ModuleNotFoundError):
            raise
        shown = "".join(
            traceback.format_exception(type(error), error, error.__traceback__, limit=_LAST_FRAMES)
        ).rstrip()
        names = ", ".join(one.name for one in sets)
        raise CandidateError(
            f"With the candidates {names} the model ended, outside of their files.\n{shown}"
        ) from error
