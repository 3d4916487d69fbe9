"""A process with all that it started: looked at together, ended together."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Sequence

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


def memory_files_bytes(pids: Iterable[int], arena_fd: int) -> int:
    """Of files that lie in memory alone (memfd_create) and that a process of `pids` holds open, each once; the resident
    set has only what is mapped of them. The file of `arena_fd` is left out.

    Nothing of a process that an ordinary user may not look into: a worker is not dumpable, so that only root sees its.
    """
    arena = os.fstat(arena_fd)
    sizes: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    file = os.stat(f"/proc/{pid}/fd/{name}")
                    if file.st_dev == arena.st_dev and file.st_ino != arena.st_ino:
                        sizes[file.st_ino] = file.st_blocks * 512
    return sum(sizes.values())


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
