"""A process with all that it started: looked at together, ended together."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence

import psutil


def process_tree(pid: int) -> list[psutil.Process]:
    """The process and its descendants; nothing of one that is gone."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def end_tree(pid: int, seconds: float) -> None:
    """SIGKILL to every descendant and to the process group; all are gone when this returns, or `seconds` are over.

    The first process of a namespace takes all the others with it, also those that left the group; who waits for it
    reaps it and leaves by itself.
    """
    processes = process_tree(pid)
    for process in reversed(processes[1:]):
        with contextlib.suppress(psutil.Error):
            process.kill()
    if not _are_gone(processes, seconds=0.5):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        _are_gone(processes, seconds)


def runs(process: psutil.Process) -> bool:
    """Not gone, and no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _are_gone(processes: Sequence[psutil.Process], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(runs(process) for process in processes):
            return True
        time.sleep(0.002)
    return False
