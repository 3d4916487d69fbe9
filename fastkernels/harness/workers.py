"""The judge's hold on its workers: start them, talk to them within time and memory, end them for certain."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import psutil

from fastkernels.errors import EnvironmentProblem
from fastkernels.harness import wire
from fastkernels.harness.arena import Arena
from fastkernels.harness.control import Bell
from fastkernels.harness.process_tree import end_tree, memory_files_bytes, process_tree, runs
from fastkernels.harness.sandbox import PRIVATE_FOLDERS
from fastkernels.harness.verdict import Rejection, Verdict
from fastkernels.harness.watcher import Watcher

_MESSAGE_SECONDS = 2.0
"""A message whose first byte is there comes whole within this."""
_LAST_WORDS_BYTES = 6 << 10
_LOG_BYTES = 16 << 20
"""Of what a worker has printed, between two looks; past it only its last words stay on the disk."""
_LARGEST_NUMBER = 1e18  # nanoseconds: 30 years
_KEPT_VARIABLES = (
    *("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_HOME"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"),  # together they say which GPU is meant
)


@dataclass(frozen=True)
class Limits:
    """Wall seconds for loading and for one call; bytes of memory and of one written file.

    first_call_factor: how many times call_seconds the first call on new shapes or weights may take: it may compile.
    """

    load_seconds: float = 180.0
    call_seconds: float = 30.0
    first_call_factor: float = 10.0
    memory_bytes: int = 16 << 30
    file_bytes: int = 4 << 30


class Nursery:
    """Starts confined workers by forking a prepared process; use as a context manager."""

    def __init__(self, device: str = "cpu", limits: Limits | None = None, preload: tuple[str, ...] = ()) -> None:
        self.device, self.limits = device, limits or Limits()
        self._folder = Path(tempfile.mkdtemp(prefix="fastkernels-"))
        self._sock, theirs = socket.socketpair()
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        package = Path(__file__).resolve().parents[2]
        settings = {
            "socket": theirs.fileno(),
            "sys_path": [str(package), *(p for p in sys.path if p and p != str(package))],
            "environment": environment,
            "preload": list(preload),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("nursery.py")), json.dumps(settings)],
            stdin=subprocess.DEVNULL,
            env=environment,  # what a process was started with stays readable in its /proc/self/environ
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
        theirs.close()
        self._sock.settimeout(self.limits.load_seconds)
        self._is_ready = False
        self._num_workers = 0

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def start(self, name: str, arena_bytes: int, readable: tuple[Path, ...] = ()) -> Worker:
        """A fresh worker that can read `readable` beside the system; its folder and caches are its own.

        Errors: EnvironmentProblem when the nursery is gone or the worker does not come up.
        """
        self._num_workers += 1
        private = self._folder / f"{self._num_workers}-{name}"
        environment = {variable: str(private / folder) for variable, folder in PRIVATE_FOLDERS.items()}
        for path in environment.values():
            Path(path).mkdir(parents=True)
        arena = Arena(arena_bytes)
        ours, theirs = socket.socketpair()
        log_path = private.with_suffix(".log")
        message = {
            "private_dir": str(private),
            "environment": environment,
            "readable": [str(path) for path in readable],
            "device": self.device,
            "arena_bytes": arena_bytes,
            "max_file_bytes": self.limits.file_bytes,
        }
        with log_path.open("ab") as log:  # appending, it goes on from the end that a shortening left
            try:
                if not self._is_ready:
                    wire.receive(self._sock)
                    self._is_ready = True
                wire.send(self._sock, message, [theirs.fileno(), arena.fd, log.fileno()])
                reply, _ = wire.receive(self._sock)
            except (wire.WireClosed, TimeoutError) as error:
                raise EnvironmentProblem(
                    f"The process that starts workers ended (exit code {self._process.poll()}); its message is above."
                ) from error
            finally:
                theirs.close()
        return Worker(name, reply["pid"], ours, arena, private, log_path, self.limits)

    def close(self) -> None:
        self._sock.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


class Worker:
    """One confined process. Silence, death or too much memory is a Rejection, never an exception of ours."""

    def __init__(
        self, name: str, pid: int, sock: socket.socket, arena: Arena, private: Path, log_path: Path, limits: Limits
    ) -> None:
        self.name, self.pid, self.arena, self.limits = name, pid, arena, limits
        self.bell = Bell(arena.bell)
        self.sequence = 0
        self._sock, self._private, self._log_path = sock, private, log_path
        self.peak_memory_bytes = 0
        self._memory_looked_at = 0.0
        self._early: dict[str, Any] | None = None
        self.confinement: dict[str, Any] = {}

    def __enter__(self) -> Worker:
        try:
            self.confirm()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.end()

    def confirm(self) -> None:
        """Wait until it has come up. Errors: Rejection."""
        self.confinement = self._receive(self.limits.load_seconds)["confinement"]

    def request(self, message: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """Send, then `reply`."""
        self.send(message)
        return self.reply(seconds)

    def send(self, message: Mapping[str, Any]) -> None:
        try:
            wire.send(self._sock, dict(message))
        except wire.WireClosed as error:
            raise self.death() from error
        except TimeoutError:
            raise Rejection(Verdict.TIMEOUT, "The worker did not take a message; it was ended.") from None

    def reply(self, seconds: float | None = None) -> dict[str, Any]:
        """Errors: Rejection TIMEOUT or RUNTIME_ERROR; IMPORT_ERROR for a reply that says so."""
        return _checked(self._receive(seconds or self.limits.load_seconds))

    def listen(self) -> None:
        """Between turns of a block: what a worker says that cannot take its next one. The reply that follows the last
        turn may lie there too, and is kept for `reply`.

        Errors: Rejection as `reply`.
        """
        if self._early is None and select.select([self._sock], [], [], 0)[0]:
            self._early = _checked(self._receive(_MESSAGE_SECONDS))

    def _receive(self, seconds: float) -> dict[str, Any]:
        if self._early is not None:
            early, self._early = self._early, None
            return early
        self._sock.settimeout(seconds)
        deadline, watch = time.monotonic() + seconds, Watcher(self, math.inf, is_in_block=False)
        try:
            while not select.select([self._sock], [], [], 0.05)[0]:
                if time.monotonic() > deadline:
                    raise TimeoutError
                watch()
            message, _ = wire.receive(self._sock)
        except TimeoutError:
            raise Rejection(Verdict.TIMEOUT, f"No answer within {seconds:.0f} s; the worker was ended.") from None
        except wire.WireClosed:
            raise self.death() from None
        except ValueError as error:
            raise Rejection(Verdict.RUNTIME_ERROR, f"The worker sent a malformed message: {error}.") from None
        return message

    def watcher(self, seconds: float) -> Watcher:
        """For the turns of a block."""
        return Watcher(self, seconds, is_in_block=True)

    def is_alive(self) -> bool:
        return psutil.pid_exists(self.pid) and runs(psutil.Process(self.pid))

    def death(self) -> Rejection:
        """What to say of a worker that is gone: its last words."""
        time.sleep(0.05)
        tail = self.last_words()[-1500:].strip()
        return Rejection(
            Verdict.RUNTIME_ERROR,
            f"The worker process ended during the call.{' Its output ended: ' + tail if tail else ''}",
        )

    def last_words(self) -> str:
        """The end of what it has printed."""
        with contextlib.suppress(OSError), self._log_path.open("rb") as log:
            return _last_bytes(log).decode(errors="replace")
        return ""

    def _shorten_log(self) -> None:
        with contextlib.suppress(OSError):
            if self._log_path.stat().st_size > _LOG_BYTES:
                with self._log_path.open("r+b") as log:
                    kept = _last_bytes(log)
                    log.truncate(0)
                    log.seek(0)
                    log.write(kept)

    def pin(self, core: int) -> None:
        """Keep it to one core, threads included."""
        for process in process_tree(self.pid):
            with contextlib.suppress(psutil.Error, OSError):
                for thread in process.threads():
                    os.sched_setaffinity(thread.id, {core})

    def cpu_seconds(self) -> float:
        """Processor time of the worker and of everything that it started."""
        total = 0.0
        for process in process_tree(self.pid):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory_bytes(self) -> int:
        """Of all its processes, with files in memory that they hold, the arena not among these."""
        processes, total = process_tree(self.pid), 0
        for process in processes:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total + memory_files_bytes((process.pid for process in processes), self.arena.fd)

    def check_memory(self, seconds: float = 0.0) -> None:
        """Its memory, and the room that its log takes. seconds: how old the last look may be.

        Errors: Rejection RUNTIME_ERROR over the limit.
        """
        if time.monotonic() - self._memory_looked_at < seconds:
            return
        self._shorten_log()
        used, self._memory_looked_at = self.memory_bytes(), time.monotonic()
        self.peak_memory_bytes = max(self.peak_memory_bytes, used)
        limit = self.limits.memory_bytes
        if used > limit:
            raise Rejection(
                Verdict.RUNTIME_ERROR,
                f"The worker used {used >> 20} MiB, over the limit of {limit >> 20} MiB; it was ended.",
            )

    def end(self) -> None:
        """All of it is gone when this returns; then the arena is freed."""
        end_tree(self.pid, seconds=5)
        self._sock.close()
        self.arena.close()
        shutil.rmtree(self._private, ignore_errors=True)
        self._log_path.unlink(missing_ok=True)


def _last_bytes(file: BinaryIO) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LAST_WORDS_BYTES))
    return file.read(_LAST_WORDS_BYTES)


def number(value: object) -> float:
    """What a worker says that it measured; no less than 0.

    Errors: Rejection RUNTIME_ERROR for what is no such number.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LARGEST_NUMBER:
        return float(value)
    raise Rejection(Verdict.RUNTIME_ERROR, f"The worker sent {str(value)[:100]!r} where a measurement was expected.")


def _checked(reply: dict[str, Any]) -> dict[str, Any]:
    """Errors: Rejection of what a reply says went wrong."""
    if "error" not in reply:
        return reply
    problem = reply["error"]
    if not isinstance(problem, dict):
        raise Rejection(Verdict.RUNTIME_ERROR, "The worker sent a malformed reply.")
    verdict = Verdict.IMPORT_ERROR if problem.get("kind") == "import" else Verdict.RUNTIME_ERROR
    raise Rejection(verdict, str(problem.get("text", ""))[-6000:])
