"""The evaluating process's hold on its workers: start them, send work, take answers within time, end them for certain.

The clock that counts is here: from sending a request to having its answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from fastkernels.bench.eval import nursery, payload
from fastkernels.bench.eval.order import Order
from fastkernels.errors import EnvironmentProblem
from fastkernels.harness import wire
from fastkernels.harness.process_tree import end_tree
from fastkernels.harness.sandbox import PRIVATE_FOLDERS

_COMPILED = ("triton", "torch_extensions", "inductor", "cuda")
_RANK_VARIABLES = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""Ranks of one worker meet on the loopback device: they have no other."""

_SHARED_MEMORY = "/dev/shm"
_BOOT_SECONDS = 300.0
_LAST_WORDS = 1500
_TOLD_REASONS = ("IMPORT_ERROR", "SIGNATURE_ERROR")
"""A worker may say these of itself; whatever else went wrong is CRASH."""


class WorkerFailed(Exception):
    """A worker broke, hung or answered with nonsense. reason: as ItemRecord has it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass
class Reply:
    """seconds: from sending to having the whole answer's message. value: the payload, not unpacked."""

    seconds: float
    facts: dict[str, Any]
    data: bytes = field(default=b"", repr=False)


class Nursery:
    """Starts confined workers by forking a process that is prepared when the first one is asked for; use as a context
    manager."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="fastkernels-eval-"))
        self._caches = self._folder / "caches"
        self._sock, self._theirs = socket.socketpair()
        self._process: subprocess.Popen[bytes] | None = None
        self._num_workers = 0
        self._preloaded: set[str] = set()

    def _boot(self) -> None:
        """Errors: EnvironmentProblem when it does not come up."""
        root = str(Path(__file__).resolve().parents[3])
        settings = {"socket": self._theirs.fileno(), "sys_path": [root, *(p for p in sys.path if p and p != root)]}
        self._process = subprocess.Popen(
            [sys.executable, "-I", nursery.__file__, json.dumps(settings)],
            stdin=subprocess.DEVNULL,
            env=nursery.kept_environment(),
            pass_fds=(self._theirs.fileno(),),
            start_new_session=True,
        )
        self._theirs.close()
        self._sock.settimeout(_BOOT_SECONDS)
        self._hear()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def start(self, order: Order) -> Worker:
        """A fresh worker that builds the engine of `order`; `Worker.ready` waits for it.

        Errors: EnvironmentProblem when the process that starts workers is gone.
        """
        self._num_workers += 1
        private = self._folder / str(self._num_workers)
        environment = {}
        for variable, folder in PRIVATE_FOLDERS.items():
            environment[variable] = str(private / folder)
            if (self._caches / folder).is_dir():
                shutil.copytree(self._caches / folder, private / folder)
            else:
                (private / folder).mkdir(parents=True)
        if order.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(order.gpus)
        has_ranks, is_cuda = order.tensor_parallel_size > 1, order.device.startswith("cuda")
        message = {
            "private_dir": str(private),
            "environment": environment | (_RANK_VARIABLES if has_ranks else {}),
            "readable": list(order.readable),
            "writable": [p for p, is_needed in (("/proc", is_cuda), (_SHARED_MEMORY, has_ranks)) if is_needed],
            "max_file_bytes": payload.MOST_BYTES,
            "order": order.options(),
        }
        ours, theirs = socket.socketpair()
        log_path = private.with_suffix(".log")
        with log_path.open("wb") as log:
            reply = self._ask(message, [theirs.fileno(), log.fileno()])
        theirs.close()
        return Worker(reply["pid"], ours, private, log_path)

    def preload(self, names: Sequence[str]) -> None:
        """Modules for workers to come, as a baseline's worker named them."""
        fresh = [name for name in names if name not in self._preloaded]
        if fresh:
            self._preloaded.update(fresh)
            self._ask({"preload": fresh})

    def keep_caches(self, worker: Worker) -> None:
        """Workers to come get a copy of what this one, of the baseline, has compiled; none writes to another's."""
        for folder in _COMPILED:
            source = worker.private / folder
            if any(source.iterdir()):
                shutil.copytree(source, self._caches / folder, dirs_exist_ok=True)

    def folder(self, name: str) -> Path:
        """A new folder that lives as long as the nursery."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))

    def close(self) -> None:
        self._sock.close()
        self._theirs.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ask(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        if self._process is None:
            self._boot()
        with contextlib.suppress(wire.WireClosed):
            wire.send(self._sock, dict(message), fds)
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        try:
            return wire.receive(self._sock)[0]
        except (wire.WireClosed, TimeoutError) as error:
            code = None if self._process is None else self._process.poll()
            raise EnvironmentProblem(
                f"The process that starts workers ended (exit code {code}); its message is above."
            ) from error


class Worker:
    """One side's process and all that it starts; use as a context manager, which ends them."""

    def __init__(self, pid: int, sock: socket.socket, private: Path, log_path: Path) -> None:
        self.pid, self.private = pid, private
        self.confinement: dict[str, Any] = {}
        self.startup_seconds = 0.0
        self._sock, self._log_path = sock, log_path
        self._is_ended = False

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.end()

    def ready(self, seconds: float) -> dict[str, Any]:
        """Wait until the engine is built; its facts. Errors: WorkerFailed."""
        started = time.perf_counter()
        self.confinement = self._receive(started + seconds, "to start")[0].get("confinement") or {}
        facts, _ = self._receive(started + seconds, "to build the model")
        self.startup_seconds = time.perf_counter() - started
        return facts

    def call(self, what: str, seconds: float, data: bytes = b"", **facts: Any) -> Reply:
        """Send work and wait for its answer. Errors: WorkerFailed, TIMEOUT past `seconds`."""
        lent = payload.lend(data) if data else None
        try:
            started = time.perf_counter()
            wire.send(self._sock, {"do": what, **facts}, [] if lent is None else [lent])
            said, answer = self._receive(started + seconds, f"for {what!r}")
            ended = time.perf_counter()
        except wire.WireClosed:
            raise self._death() from None
        finally:
            if lent is not None:
                os.close(lent)
        return Reply(ended - started, said, b"" if answer is None else _borrowed(answer))

    def _receive(self, deadline: float, what: str) -> tuple[dict[str, Any], int | None]:
        """A message, and the descriptor of the memory that it lends: it is whole by then, and is read after the clock.

        Errors: WorkerFailed.
        """
        try:
            if not select.select([self._sock], [], [], max(0.0, deadline - time.perf_counter()))[0]:
                raise TimeoutError
            self._sock.settimeout(max(0.01, deadline - time.perf_counter()))
            message, fds = wire.receive(self._sock, max_fds=1)
        except TimeoutError:
            words = self._last_words()
            raise WorkerFailed("TIMEOUT", f"The time {what} was over; the process was ended.{words}") from None
        except wire.WireClosed:
            raise self._death() from None
        except ValueError as error:
            raise WorkerFailed("CRASH", f"The process sent a malformed message: {error}.") from None
        problem = message.get("error")
        if isinstance(problem, dict):
            reason = problem.get("reason")
            text = str(problem.get("text", ""))[-4 * _LAST_WORDS :]
            raise WorkerFailed(reason if reason in _TOLD_REASONS else "CRASH", text)
        return message, fds[0] if fds else None

    def _death(self) -> WorkerFailed:
        time.sleep(0.05)
        words = self._last_words() or " It left no word: it was killed, perhaps for want of memory."
        return WorkerFailed("CRASH", f"The process ended.{words}")

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            words = self._log_path.read_text(errors="replace").strip()
            if len(words) > _LAST_WORDS:  # what ended it stands at either end
                words = f"{words[: _LAST_WORDS // 2]} ... {words[-_LAST_WORDS // 2 :]}"
            return f" Its last words: {words}" if words else ""
        return ""

    def end(self) -> None:
        """The process and all that it started are gone when this returns; a second time it does nothing, since the pid
        may be another's by then."""
        if self._is_ended:
            return
        self._is_ended = True
        end_tree(self.pid, seconds=10)
        self._sock.close()
        shutil.rmtree(self.private, ignore_errors=True)


def _borrowed(descriptor: int) -> bytes:
    """Errors: WorkerFailed."""
    try:
        return payload.borrow(descriptor)
    except (ValueError, OSError) as error:
        raise WorkerFailed("CRASH", f"The answer cannot be read: {error}") from None
