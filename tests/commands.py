"""A command of the command line called in this process: one of its own takes two seconds to import torch."""

from __future__ import annotations

from subprocess import CompletedProcess

import pytest

from fastkernels.cli import main


def called(capsys: pytest.CaptureFixture[str], *words: object) -> CompletedProcess[str]:
    """What it said and the code with which its process would have ended; an unforeseen error is raised."""
    capsys.readouterr()
    code = 0
    try:
        main([*map(str, words)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return CompletedProcess(words, code, *capsys.readouterr())
