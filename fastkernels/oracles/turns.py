"""Who measures on a device that several processes share. Imports no torch: who starts them does without it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil


class Turns:
    """Of processes that share a device: each has a part in the lock of a file until it ends, but while it is alone."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")
        fcntl.flock(self._file, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until every other process waits for its turn, too, or has ended."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_SH)


class Pauses:
    """Of processes that share a device, each with its children: who measures stops the others for as long, so that
    nobody waits for what another compiles. folder: the same of all, with a file a process, named by its id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with self._one_at_a_time():
            (folder / str(os.getpid())).touch()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """What the others gave the device to do before may still run at the beginning."""
        with self._one_at_a_time():
            _signal_all(self._others(), signal.SIGSTOP)
            try:
                yield
            finally:
                _signal_all(self._others(), signal.SIGCONT)

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        with (self._folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _others(self) -> list[int]:
        return [pid for pid in _registered(self._folder) if pid != os.getpid()]


def forget(folder: Path, pid: int) -> None:
    """A process of Pauses has ended, perhaps while the others were stopped for it."""
    (folder / str(pid)).unlink(missing_ok=True)
    with (folder / "lock").open("a") as file:  # whoever measures now has stopped them for itself
        fcntl.flock(file, fcntl.LOCK_EX)
        _signal_all(_registered(folder), signal.SIGCONT)


def _registered(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def _signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            one = psutil.Process(pid)
            for process in [one, *one.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
