"""Tensor parallelism: one scheduler, and a process a rank that runs the same steps on its share of the weights.

Rank 0 lives in the engine's process. The others are told each step's inputs (a few kilobytes), never tensors; every
rank draws the same tokens from the gathered logits, so none has to be told what was sampled.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from fastkernels.engine.batch import Array, StepInputs
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.executor import ModelExecutor
from fastkernels.engine.outputs import EngineRequest
from fastkernels.engine.step import ModelFacts, Runner, Step
from fastkernels.engine.structured import GrammarError
from fastkernels.errors import EXIT_NOT_PASSED, EXIT_OK, EnvironmentProblem, FastKernelsError, UsageError

_PR_SET_PDEATHSIG = 1
_STOP_SECONDS = 10


class RankError(FastKernelsError):
    """A rank ended or could not start."""


class ParallelExecutor:
    """Rank 0's executor, and the other ranks behind it.

    Errors: UsageError for more ranks than GPUs; RankError with what a rank said when it could not start.
    """

    def __init__(self, config: EngineConfig) -> None:
        size = config.tensor_parallel_size
        is_cuda = _is_cuda(config)
        if is_cuda and torch.cuda.device_count() < size:
            raise UsageError(f"tensor_parallel_size is {size}; {torch.cuda.device_count()} GPUs are visible.")
        if dist.is_initialized():
            raise EnvironmentProblem("This process already has a process group; one engine with ranks is its limit.")
        self._folder = tempfile.mkdtemp(prefix="fastkernels-ranks-")
        self._ranks: list[_Rank] = []
        self._is_closed = self._has_grammars = False
        try:
            self._ranks = [_Rank(config, rank, self._folder) for rank in range(1, size)]
            join_group(config, 0, self._folder)
            self._own = ModelExecutor(_on_device(config, 0))
            for rank in self._ranks:
                rank.expect_ready()
        except BaseException as error:
            refusal = self._refusal() if isinstance(error, Exception) else None
            self.close()
            if refusal is not None and not isinstance(error, FastKernelsError):
                raise refusal from error  # rank 0 met only the end of their group
            raise
        self.runner: Runner = _ToldRunner(self._own.runner, self._ranks)
        atexit.register(self.close)

    def _refusal(self) -> RankError | None:
        """What a rank said that could not start, or which one has ended without a word."""
        said = [refusal for rank in self._ranks if (refusal := rank.refusal()) is not None]
        said += [rank.error() for rank in self._ranks if rank.process.poll() is not None]
        return said[0] if said else None

    @property
    def facts(self) -> ModelFacts:
        return self._own.facts

    def check(self, request: EngineRequest) -> None:
        """With the first grammar the other ranks load what it needs, beside their steps."""
        if request.params.structured_outputs is not None and not self._has_grammars:
            self._has_grammars = True
            for rank in self._ranks:
                rank.send(pickle.dumps(("load_grammars",)))
        self._own.check(request)

    def encoder_len(self, encoder_input: Array) -> int:
        return self._own.encoder_len(encoder_input)

    def kernels(self) -> list[dict[str, Any]]:
        """As of one rank, with the rank that each line is of where a candidate replaces an op."""
        lines = [{**line, "rank": 0} for line in self._own.kernels()]
        for rank in self._ranks:
            lines += [line for line in rank.ask("kernels") if line["status"] != "BASELINE"]
        return lines

    def num_compilations(self) -> int:
        return self._own.num_compilations()

    def num_kernels_made(self) -> int:
        return self._own.num_kernels_made()

    def peak_memory_bytes(self) -> int:
        return self._own.peak_memory_bytes()

    def close(self) -> None:
        """End the ranks; those that do not end in time are killed."""
        if self._is_closed:
            return
        self._is_closed = True
        atexit.unregister(self.close)
        own = getattr(self, "_own", None)
        if own is not None:
            own.close()
        for rank in self._ranks:
            rank.tell_to_stop()
        leaving = _leaving_group()  # beside the others: NCCL's ranks leave together
        for rank in self._ranks:
            rank.wait_or_kill()
        _see_group_left(leaving)
        shutil.rmtree(self._folder, ignore_errors=True)


class _ToldRunner:
    """Tells every other rank what rank 0 is about to do, then does it."""

    def __init__(self, own: Runner, ranks: list[_Rank]) -> None:
        self._own, self._ranks = own, ranks

    @property
    def num_graph_steps(self) -> int:
        return self._own.num_graph_steps

    def launch(self, inputs: StepInputs) -> Step:
        self._tell(("launch", inputs))
        try:
            step = self._own.launch(inputs)
        except Exception as error:  # of a rank that is gone, or of the group that _watch took away: of many types
            self._check_ranks(error)
            raise
        self._check_ranks()  # without a group, collectives give back what they get
        return step

    def _check_ranks(self, error: Exception | None = None) -> None:
        for rank in self._ranks:
            if rank.process.poll() is not None:
                raise rank.error() from error

    def accept(self, row: int, token: int) -> None:
        self._tell(("accept", row, token))
        self._own.accept(row, token)

    def _tell(self, message: tuple[Any, ...]) -> None:
        body = pickle.dumps(message, protocol=5)
        for rank in self._ranks:
            rank.send(body)


class _Rank:
    """A process of another rank, seen from rank 0."""

    def __init__(self, config: EngineConfig, rank: int, folder: str) -> None:
        self.rank = rank
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "fastkernels.engine.parallel", str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._connection: Connection[Any, Any] = Connection(ours.detach())
        self._is_ending = False
        self._sending = threading.Lock()
        self._connection.send((config, rank, folder, os.getpid()))
        threading.Thread(target=self._watch, daemon=True).start()

    def send(self, body: bytes) -> None:
        try:
            with self._sending:  # `check` may be called in a thread of its own
                self._connection.send_bytes(body)
        except (BrokenPipeError, ConnectionResetError):
            raise self.error() from None

    def error(self) -> RankError:
        """Of a rank that has ended."""
        return RankError(f"Rank {self.rank} has ended with exit code {self.process.poll()}.")

    def ask(self, what: str) -> Any:
        self.send(pickle.dumps((what,)))
        return self._receive()

    def expect_ready(self) -> None:
        self._see_ready(self._receive())

    def refusal(self) -> RankError | None:
        """What it has said that it could not start; it is not waited for."""
        try:
            if self._connection.poll():
                self._see_ready(self._connection.recv())
        except RankError as refusal:
            return refusal
        except (EOFError, ConnectionResetError):
            return None
        return None

    def _see_ready(self, said: Any) -> None:
        if said != "ready":
            raise RankError(f"Rank {self.rank} did not start: {said}")

    def tell_to_stop(self) -> None:
        self._is_ending = True
        with contextlib.suppress(OSError):
            self._connection.send_bytes(pickle.dumps(("stop",)))

    def wait_or_kill(self) -> None:
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._connection.close()

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise RankError(f"Rank {self.rank} has ended with exit code {self.process.wait()}.") from None

    def _watch(self) -> None:
        """A rank that is gone leaves the others waiting in a collective: end what waits."""
        self.process.wait()
        if not self._is_ending and dist.is_initialized():
            _abort_group()


def join_group(config: EngineConfig, rank: int, folder: str) -> None:
    """Enter the ranks' process group: NCCL between GPUs, gloo on a CPU."""
    is_cuda = _is_cuda(config)
    if is_cuda:
        torch.cuda.set_device(rank)
    device = torch.device("cuda", rank) if is_cuda else None
    dist.init_process_group(
        "nccl" if is_cuda else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=config.tensor_parallel_size,
        device_id=device,
    )


def _leaving_group() -> threading.Thread:
    """A thread that leaves the process group: NCCL waits there for its other ranks, and for every CUDA graph that holds
    one of its collectives, without an end."""

    def leave() -> None:
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError, ValueError):  # it was taken away, or another rank is gone
                dist.destroy_process_group()

    thread = threading.Thread(target=leave, daemon=True)
    thread.start()
    return thread


def _see_group_left(leaving: threading.Thread) -> None:
    leaving.join(_STOP_SECONDS)
    if leaving.is_alive():
        aborting = threading.Thread(target=_abort_group, daemon=True)
        aborting.start()
        aborting.join(_STOP_SECONDS)


def _abort_group() -> None:
    with contextlib.suppress(Exception):
        dist.distributed_c10d._abort_process_group()


def _is_cuda(config: EngineConfig) -> bool:
    return torch.cuda.is_available() if config.device is None else config.device.startswith("cuda")


def _on_device(config: EngineConfig, rank: int) -> EngineConfig:
    return replace(config, device=f"cuda:{rank}" if _is_cuda(config) else "cpu")


def serve_rank(descriptor: int) -> None:
    """A rank's life: build its share, then do what rank 0 says until it stops or is gone."""
    connection: Connection[Any, Any] = Connection(descriptor)
    config, rank, folder, parent = connection.recv()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides when all end
    try:
        join_group(config, rank, folder)
        executor = ModelExecutor(_on_device(config, rank))
    except FastKernelsError as error:
        connection.send(str(error))
        return
    connection.send("ready")
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            what, *rest = connection.recv()
            if what == "launch":
                executor.runner.launch(*rest)
            elif what == "accept":
                with contextlib.suppress(GrammarError):  # rank 0 meets it too, and ends the request
                    executor.runner.accept(*rest)
            elif what == "load_grammars":
                threading.Thread(target=executor.runner.sampler.load_grammars, daemon=True).start()
            elif what == "kernels":
                connection.send([{**line, "rank": rank} for line in executor.kernels()])
            else:
                break
    executor.close()
    _see_group_left(_leaving_group())


def main(descriptor: int) -> NoReturn:
    """Serve, then end at once: an interpreter that shuts down waits for what NCCL still does."""
    code = EXIT_NOT_PASSED
    try:
        serve_rank(descriptor)
        code = EXIT_OK
    except Exception:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]))
