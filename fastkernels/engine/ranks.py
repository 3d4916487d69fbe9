"""The other ranks of a tensor-parallel engine as rank 0 sees them: processes that are told what to do, and watched."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from hashlib import blake2b
from multiprocessing.connection import Connection
from signal import SIGABRT
from typing import Any

import torch.distributed as dist

from fastkernels.engine import rank_group
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.sampling_params import StructuredOutputsParams
from fastkernels.errors import RankError

HERE, READY = "here", "ready"
"""What a rank says before it joins the others, and once it can make steps."""

_GRACE_SECONDS = 2.0
"""After an error of rank 0's, for a rank to be seen to have ended: most errors within collectives come of that."""

_SETTLE_SECONDS = 0.1
"""After a rank's end, for others to be seen that ended with it: the first that is seen need not be the first."""

_MOST_NAMES = 4096
"""Of grammars that every rank has compiled."""


@dataclass(frozen=True)
class Order:
    """What a rank is started with. store, grammars: descriptors, of the file through which ranks find each other, and
    of the socket through which it is sent grammars to compile; parent: the process without which it ends."""

    config: EngineConfig
    rank: int
    store: int
    grammars: int
    parent: int


@dataclass(frozen=True)
class Refusal:
    """A rank's last word: why it cannot go on."""

    reason: str
    exit_code: int


class Rank:
    """One process. on_end: called with it in the thread that watches it, once it has ended."""

    def __init__(self, config: EngineConfig, rank: int, store: int, on_end: Callable[[Rank], None]) -> None:
        self.rank = rank
        self.exit_code: int | None = None
        self.refusal: Refusal | None = None
        self._is_ready = False
        self._on_end, self._has_ended = on_end, threading.Event()
        self._sending, self._receiving = threading.Lock(), threading.Lock()
        (ours, theirs), (our_grammars, their_grammars) = socket.socketpair(), socket.socketpair()
        self._connection: Connection[Any, Any] = Connection(ours.detach())
        self.grammars: Connection[Any, Any] = Connection(our_grammars.detach())
        order = Order(config, rank, store, their_grammars.fileno(), os.getpid())
        started: Future[subprocess.Popen[bytes]] = Future()
        watched = ((theirs, their_grammars), store, started)
        threading.Thread(target=self._watch, args=watched, name=f"rank-{rank}-watch", daemon=True).start()
        self._process = started.result()
        with contextlib.suppress(OSError):  # of a rank that has ended: its words are waited for next
            self._connection.send(order)

    def send(self, body: bytes) -> None:
        """Of any thread. Errors: OSError when it has ended."""
        with self._sending:
            self._connection.send_bytes(body)

    def receive(self) -> Any:
        """What it says next. Errors: EOFError or OSError when it has ended, or is about to."""
        with self._receiving:
            said = self._hear(self._connection.recv())
        if self.refusal is not None:
            raise EOFError
        return said

    def expect(self, word: str) -> None:
        """Wait for HERE or READY. Errors: EOFError or OSError when it has ended, or is about to."""
        if self.receive() != word:
            raise EOFError
        self._is_ready = word == READY

    def error(self) -> RankError:
        """Of a rank that has ended: what it said, else how it did."""
        with contextlib.suppress(EOFError, OSError), self._receiving:
            while self.refusal is None and self._connection.poll():
                self._hear(self._connection.recv())
        if self.refusal is not None:
            what = "has ended" if self._is_ready else "did not start"
            return RankError(f"Rank {self.rank} {what}: {self.refusal.reason}", self.refusal.exit_code)
        return RankError(f"Rank {self.rank} has ended with exit code {self.exit_code}.")

    def stop(self) -> None:
        """Tell it to end; it is killed where it would not hear that, on its way to the others."""
        if not self._is_ready:
            self.kill()
            return
        with contextlib.suppress(OSError):
            self.send(pickle.dumps(("stop",)))

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        """Wait until it has ended; it is killed when that takes too long."""
        if not self._has_ended.wait(rank_group.STOP_SECONDS):
            self.kill()
            self._has_ended.wait()
        with self._receiving:
            self._connection.close()
        self.grammars.close()

    def _hear(self, said: Any) -> Any:
        if isinstance(said, Refusal):
            self.refusal = said
        return said

    def _watch(self, theirs: Sequence[socket.socket], store: int, started: Future[subprocess.Popen[bytes]]) -> None:
        """Starts it, too: it ends with the thread that did (`end_with`), and this one is there as long as it is."""
        try:
            process = _start([end.fileno() for end in theirs], store)
        except BaseException as error:
            started.set_exception(error)
            return
        finally:
            for end in theirs:
                end.close()
        started.set_result(process)
        self.exit_code = process.wait()
        self._has_ended.set()
        self._on_end(self)


def _start(sockets: Sequence[int], store: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fastkernels.engine.rank_process", str(sockets[0])],
        pass_fds=[*sockets, store],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C of a terminal is for rank 0, which decides when all end
    )


class Ranks:
    """All ranks but 0. The engine is of no more use once one of them has ended, or rank 0 has left a step: then all
    are ended, and whatever is asked of them is a RankError that says why."""

    def __init__(self) -> None:
        self._all: list[Rank] = []
        self._ended: list[Rank] = []
        self._lock = threading.Lock()
        self._failure: RankError | None = None
        self._has_failed = threading.Event()
        self._on_failure: Callable[[RankError], None] | None = None
        self._is_stopping = False
        self._compiling = threading.Lock()
        self._compiled: set[bytes] = set()

    def start(self, config: EngineConfig, store: int) -> None:
        for rank in range(1, config.tensor_parallel_size):
            self._all.append(Rank(config, rank, store, self._note_end))

    def expect(self, word: str) -> None:
        """Wait until each has said HERE or READY. Errors: RankError with what one said that cannot."""
        for rank in self._all:
            with self._answering(rank):
                rank.expect(word)

    def tell(self, *message: Any) -> None:
        """Errors: RankError."""
        body = pickle.dumps(message, protocol=5)
        for rank in self._all:
            self._send(rank, body)

    def ask(self, what: str) -> list[Any]:
        """What each answers. Errors: RankError."""
        answers = []
        for rank in self._all:
            self._send(rank, pickle.dumps((what,)))
            with self._answering(rank):
                answers.append(rank.receive())
        return answers

    @contextmanager
    def compiling(self, grammar: StructuredOutputsParams) -> Iterator[None]:
        """Around rank 0's compiling of a grammar: all do, each in a thread beside its steps, and none of them has to
        in the step in which the request enters. Of any thread.

        Errors: RankError.
        """
        body = pickle.dumps(grammar, protocol=5)
        name = blake2b(body, digest_size=16).digest()
        if name in self._compiled:
            yield
            return
        with self._compiling:
            for rank in self._all:
                with self._answering(rank):
                    rank.grammars.send_bytes(body)
            try:
                yield
            finally:
                for rank in self._all:
                    with self._answering(rank):
                        rank.grammars.recv()
            self._note_compiled(name)

    def check(self) -> None:
        """Errors: RankError when no step can be made any more."""
        if self._failure is not None or self._ended:
            raise self.failure() or self._ended[0].error()

    def failure(self, patience: float = _GRACE_SECONDS) -> RankError | None:
        """Why no step can be made any more, if that comes out within so many seconds."""
        self._has_failed.wait(patience)
        return copy(self._failure)  # without the frames of whom it was raised to before

    def when_failed(self, tell: Callable[[RankError], None]) -> None:
        """`tell` is called once, in any thread, when no step can be made any more: now, if that is so."""
        with self._lock:
            self._on_failure, failure = tell, self._failure
        if failure is not None:
            tell(failure)

    def give_up(self, error: BaseException) -> None:
        """Rank 0 has left a step that the others were told. They are in it: their collectives would pair with those
        of another.

        Errors: RankError when it is one of them that has ended.
        """
        failure = self.failure() if isinstance(error, Exception) else None
        if failure is not None:
            raise failure from error
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        self._fail(RankError(f"Rank 0 left a step ({said}), and the other ranks were ended. Build the engine anew."))

    def stop(self) -> None:
        """Tell them to end, without waiting."""
        self._is_stopping = True
        for rank in self._all:
            rank.stop()

    def end(self) -> None:
        """Wait for them; those that do not end in time are killed."""
        for rank in self._all:
            rank.end()

    def _send(self, rank: Rank, body: bytes) -> None:
        with self._answering(rank):
            rank.send(body)

    @contextmanager
    def _answering(self, rank: Rank) -> Iterator[None]:
        """Around what is said to a rank and heard of it: a RankError when it answers no more. The one that ended first
        may be another."""
        try:
            yield
        except (EOFError, OSError):
            raise self.failure() or rank.error() from None

    def _note_compiled(self, name: bytes) -> None:
        if len(self._compiled) >= _MOST_NAMES:
            self._compiled.clear()
        self._compiled.add(name)

    def _note_end(self, rank: Rank) -> None:
        """A rank that is gone leaves the others waiting in a collective: end what waits."""
        with self._lock:
            self._ended.append(rank)
            is_first = len(self._ended) == 1
        if self._is_stopping or not is_first:
            return
        time.sleep(_SETTLE_SECONDS)
        self._fail(_culprit(self._ended).error())
        if dist.is_initialized():
            rank_group.abort_group()

    def _fail(self, failure: RankError) -> None:
        with self._lock:
            if self._failure is not None:
                return
            self._failure, tell = failure, self._on_failure
        self._has_failed.set()
        for rank in self._all:
            rank.kill()
        if tell is not None:
            tell(failure)


def _culprit(ended: Sequence[Rank]) -> Rank:
    """For whose sake the others ended: one that a signal ended, else the first. gloo answers another's end with an
    error, and at times with abort()."""
    return next((rank for rank in ended if (rank.exit_code or 0) < 0 and rank.exit_code != -SIGABRT), ended[0])
