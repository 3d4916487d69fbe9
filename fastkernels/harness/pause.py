"""A worker that is stopped, with every process and thread of its tree, while the judge writes a call's inputs to memory
that it can read: nothing can be computed beside the writing.

What little is written while a turn is taken needs no pause, and gets none: waking takes longer than that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

import psutil

DIRECT_BYTES = 16 << 10
"""Inputs up to this are written while the worker runs: one copy, of a few microseconds."""


@contextlib.contextmanager
def stopped(pid: int, watch: Callable[[], None]) -> Iterator[None]:
    """Neither `pid` nor a descendant runs within. watch: called while one does not stop; it raises to give up."""
    reached: list[int] = []
    try:
        _stop_tree(pid, watch, reached)
        yield
    finally:
        for one in reached:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGCONT)


def _stop_tree(pid: int, watch: Callable[[], None], reached: list[int]) -> None:
    """Parents first: who is stopped starts nothing more, and what it has started is found after that."""
    reached.append(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    while any(_runs(thread) for thread in _threads(pid)):
        watch()
        time.sleep(0)
    for child in _children(pid):
        _stop_tree(child, watch, reached)


def _threads(pid: int) -> list[str]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [f"/proc/{pid}/task/{thread}" for thread in os.listdir(f"/proc/{pid}/task")]
    return []


def _runs(thread: str) -> bool:
    """Neither stopped nor gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"{thread}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] not in b"TtZX"
    return False


def _children(pid: int) -> list[int]:
    """Of a process that is stopped all; not every kernel says them (https://docs.kernel.org/filesystems/proc.html)."""
    found: list[int] = []
    try:
        for thread in _threads(pid):
            with open(f"{thread}/children", "rb") as file:
                found += [int(child) for child in file.read().split()]
    except OSError:
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
    return found
