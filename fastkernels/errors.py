"""Every error a user can meet. Each message names the value, the limit and what to do.

FastKernelsError
├── UsageError              exit 2: the call's words are off
│   └── UnknownNameError    exit 2: no such op, set, model or workload; suggests the nearest
├── InputFileError          exit 3: a file from outside is not what it says it is
│   ├── CaseFileError       a case set is truncated, altered or of another version
│   ├── CheckpointError     a checkpoint has missing, extra or misshapen tensors
│   └── RunFolderError      a run folder is incomplete or of another version
├── CandidateError          exit 1: a candidate's file, class or signature is not the contract's
├── UnsupportedError        exit 4: an op or a request cannot do this; names the value and the limit
├── RankError               exit 1, or its reason's: a tensor-parallel rank ended or could not start
└── EnvironmentProblem      exit 5: no GPU, disk full, a tool is missing
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_NOT_PASSED = 1
EXIT_USAGE = 2
EXIT_INPUT_FILE = 3
EXIT_UNSUPPORTED = 4
EXIT_ENVIRONMENT = 5
EXIT_JUDGE_ERROR = 6
"""FastKernels itself failed on an op; the sweep went on."""
EXIT_INTERRUPTED = 130


class FastKernelsError(Exception):
    """Base of all; the command line prints its message and exits with `exit_code`."""

    exit_code = EXIT_NOT_PASSED


class UsageError(FastKernelsError):
    exit_code = EXIT_USAGE


class UnknownNameError(UsageError):
    """A name that is not registered; the message lists the nearest ones, or all when they are few, then `note`."""

    def __init__(self, kind: str, name: str, known: Iterable[str], note: str = "") -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        if near:
            hint = f"Did you mean {' or '.join(near)}?"
        elif names:
            hint = f"Known: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}."
        else:
            hint = "None is registered."
        super().__init__(f"There is no {kind} named {name!r}. {hint}{note and ' ' + note}")
        self.kind, self.name, self.near = kind, name, near


class InputFileError(FastKernelsError):
    exit_code = EXIT_INPUT_FILE


class CaseFileError(InputFileError):
    pass


class CheckpointError(InputFileError):
    pass


class RunFolderError(InputFileError):
    pass


class CandidateError(FastKernelsError):
    """kind: "import" when the file does not run, "signature" when it runs and is not the contract's class."""

    exit_code = EXIT_NOT_PASSED

    def __init__(self, message: str, kind: str = "signature") -> None:
        super().__init__(message)
        self.kind = kind


class UnsupportedError(FastKernelsError):
    exit_code = EXIT_UNSUPPORTED


class EnvironmentProblem(FastKernelsError):
    exit_code = EXIT_ENVIRONMENT


class RankError(FastKernelsError):
    """A rank of a tensor-parallel engine ended or could not start: the engine can make no step any more.

    exit_code: of the rank's reason.
    """

    def __init__(self, message: str, exit_code: int = EXIT_NOT_PASSED) -> None:
        super().__init__(message)
        self.exit_code = exit_code
