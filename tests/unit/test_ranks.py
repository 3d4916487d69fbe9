"""Ranks as rank 0 sees them, over processes that have no model: whatever befalls one is told, and named."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from fastkernels.engine import parallel, rank_process
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.outputs import EngineRequest
from fastkernels.engine.parallel import ToldRunner
from fastkernels.engine.process import Channel, EngineLoop
from fastkernels.engine.ranks import Order, Ranks, Refusal
from fastkernels.engine.sampling_params import SamplingParams, StructuredOutputsParams
from fastkernels.engine.structured import GrammarError
from fastkernels.errors import RankError, UsageError

CONFIG = EngineConfig("tiny-llama", device="cpu", tensor_parallel_size=3)
INPUTS: Any = "a step's"


LINKED = """import os, sys, time
from fastkernels.engine.lifetime import end_with
end_with(os.getppid())
open(f"{sys.argv[1]}/{os.getpid()}", "w").close()
time.sleep(100)
"""
"""A process that ends as a rank does, with who started it; it says in a folder that it is so far."""


class Started:
    """Ranks whose processes run a script of the shell's, and those processes."""

    def __init__(self) -> None:
        self.ranks = Ranks()
        before = psutil.Process().children()
        with open(os.devnull) as store:
            self.ranks.start(CONFIG, store.fileno())
        self.processes = [child for child in psutil.Process().children() if child not in before]

    @property
    def num_alive(self) -> int:
        num = 0
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                num += process.status() != psutil.STATUS_ZOMBIE
        return num

    def wait_for_their_end(self) -> None:
        started = time.monotonic()
        while self.num_alive:
            assert time.monotonic() - started < 30
            time.sleep(0.01)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Started]]:
    made: list[Started] = []

    def start(script: str) -> Started:
        path = tmp_path / "rank"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))
        made.append(Started())
        return made[-1]

    yield start
    for one in made:
        for process in one.processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        one.ranks.stop()
        one.ranks.end()


class Own:
    """Rank 0's runner: does what it is given instead of a step."""

    num_graph_steps = 0

    def __init__(self, does: Callable[[], None]) -> None:
        self.does = does

    def launch(self, inputs: object) -> Any:
        self.does()

    def accept(self, row: int, token: int) -> None:
        self.does()


def raising(error: BaseException) -> Callable[[], None]:
    def does() -> None:
        raise error

    return does


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("rank 0 alone")], ids=["interrupt", "memory"])
@pytest.mark.parametrize("name", ["launch", "accept"])
def test_no_step_is_made_after_one_that_rank_0_left(
    error: BaseException, name: str, start: Callable[[str], Started]
) -> None:
    """The others are in it, and their collectives would pair with those of the next."""
    started = start("exec sleep 100")
    own = Own(raising(error))
    runner = ToldRunner(own, started.ranks)
    arguments = {"launch": (INPUTS,), "accept": (0, 5)}[name]
    with pytest.raises(type(error)):
        getattr(runner, name)(*arguments)
    own.does = lambda: None
    for _ in range(2):
        with pytest.raises(RankError, match=rf"Rank 0 left a step \({type(error).__name__}.*Build the engine anew"):
            runner.launch(INPUTS)
    started.wait_for_their_end()


def test_what_every_rank_refuses_alike_ends_none(start: Callable[[str], Started]) -> None:
    started = start("exec sleep 100")
    runner = ToldRunner(Own(raising(GrammarError("nothing follows"))), started.ranks)
    for _ in range(2):
        with pytest.raises(GrammarError):
            runner.accept(0, 5)
    assert started.num_alive == 2


@pytest.mark.parametrize("signals", [(signal.SIGKILL,), (signal.SIGABRT, signal.SIGKILL)], ids=["alone", "after"])
def test_an_error_in_a_collective_names_the_rank_that_ended(
    signals: tuple[int, ...], start: Callable[[str], Started]
) -> None:
    """Of two that end at once the one that was killed: gloo itself calls abort() at another's end."""
    started = start("exec sleep 100")

    def break_off() -> None:
        for process, number in zip(started.processes, signals, strict=False):
            os.kill(process.pid, number)
        raise RuntimeError("Connection closed by peer")

    runner = ToldRunner(Own(break_off), started.ranks)
    for _ in range(2):
        with pytest.raises(RankError, match=f"Rank {len(signals)} has ended with exit code -9"):
            runner.launch(INPUTS)
    started.wait_for_their_end()


class Idle:
    """An engine without work, whose `add` is told of the ranks as that of an engine with grammars is."""

    has_unfinished = False

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def check(self, request: object) -> None:
        self.ranks.tell("a grammar")

    add = check


@pytest.fixture
def channel() -> Iterator[Channel]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(theirs)


def test_a_dead_rank_ends_an_idle_engine(channel: Channel, start: Callable[[str], Started]) -> None:
    started = start("exec sleep 100")
    loop = EngineLoop(Idle(started.ranks), channel)  # type: ignore[arg-type]
    started.ranks.when_failed(loop.fail)
    started.processes[1].kill()
    with pytest.raises(RankError, match="Rank 2 has ended with exit code -9"):
        loop.turn()
    told: list[RankError] = []
    started.ranks.when_failed(told.append)
    assert len(told) == 1, "Who asks later is told at once."


def test_a_dead_rank_is_no_fault_of_the_request_that_meets_it(
    channel: Channel, start: Callable[[str], Started]
) -> None:
    started = start("exec sleep 100")
    loop = EngineLoop(Idle(started.ranks), channel)  # type: ignore[arg-type]
    started.processes[0].kill()
    started.wait_for_their_end()
    with pytest.raises(RankError, match="Rank 1 has ended with exit code -9"):
        loop.handle(("add", [EngineRequest("a", (5,), SamplingParams())]))


def test_a_rank_that_ends_before_it_joins_is_not_waited_for(
    start: Callable[[str], Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever joins waits half an hour for all."""
    start("exit 3")
    monkeypatch.setattr(parallel, "join_group", lambda *_: pytest.fail("rank 0 joins"))
    with pytest.raises(RankError, match=r"Rank [12] has ended with exit code 3"):
        parallel.ParallelExecutor(CONFIG)


def test_ranks_outlive_the_thread_that_built_the_engine(start: Callable[[str], Started], tmp_path: Path) -> None:
    folder = tmp_path / "linked"
    folder.mkdir()
    with ThreadPoolExecutor(1) as thread:
        started = thread.submit(start, f"exec '{sys.executable}' -c '{LINKED}' '{folder}'").result()
        begun = time.monotonic()
        while len(list(folder.iterdir())) < len(started.processes):
            assert time.monotonic() - begun < 60
            time.sleep(0.01)
    time.sleep(0.2)
    assert started.num_alive == 2
    assert started.ranks.failure(0) is None


@pytest.mark.parametrize(
    ("error", "message", "exit_code"),
    [
        (UsageError("tensor_parallel_size is 3: no."), "tensor_parallel_size is 3: no.", 2),
        (RuntimeError("No such GPU."), "RuntimeError: No such GPU.", 1),
    ],
    ids=["known", "unknown"],
)
def test_a_ranks_last_word_is_why_it_ended(
    error: Exception, message: str, exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_process, "end_with", lambda parent: None)
    monkeypatch.setattr(rank_process, "take_device", lambda config, rank: raising(error)())
    ours, theirs = (Connection(end.detach()) for end in socket.socketpair())
    ours.send(Order(CONFIG, 1, 0, 0, os.getpid()))
    with suppress(RuntimeError):
        rank_process.serve_rank(theirs.fileno())
    assert ours.recv() == Refusal(message, exit_code)


def test_every_rank_has_compiled_a_grammar_before_its_request_enters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it does in that step, for which the others' requests wait. An error there is rank 0's to tell."""
    ours, theirs = (Connection(end.detach()) for end in socket.socketpair())
    ranks, may_end, seen = Ranks(), threading.Event(), list[str]()
    monkeypatch.setattr(ranks, "_all", [SimpleNamespace(grammars=ours)])

    def compile_it(params: SamplingParams) -> None:
        assert params.structured_outputs is not None
        may_end.wait(30)
        seen.append(f"rank 1: {params.structured_outputs.regex}")
        if params.structured_outputs.regex == "(":
            raise ValueError("no regex")

    sampler: Any = SimpleNamespace(check=compile_it)
    threading.Thread(target=rank_process._compile_grammars, args=(theirs, sampler), daemon=True).start()
    for regex in ("(", "a", "a"):
        may_end.clear()
        with ranks.compiling(StructuredOutputsParams(regex=regex)):
            seen.append(f"rank 0: {regex}")
            may_end.set()
    assert seen == ["rank 0: (", "rank 1: (", "rank 0: a", "rank 1: a", "rank 0: a"]
    ours.close()


@pytest.mark.parametrize(
    ("device", "message"),
    [("banana", "'banana' is not a device"), ("cpu:1", "'cpu:1': leave the index out"), ("mps", "ranks run on cpu or")],
)
def test_a_device_that_ranks_cannot_have_is_refused(device: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parallel.ParallelExecutor(replace(CONFIG, device=device))


def test_ctrl_c_while_the_ranks_start_leaves_none(start: Callable[[str], Started]) -> None:
    """A terminal's goes to rank 0 alone, which does not wait for ranks that hear nothing yet."""
    started = start("exec sleep 100")
    assert all(os.getsid(process.pid) == process.pid for process in started.processes)
    begun = time.monotonic()
    started.ranks.stop()
    started.ranks.end()
    assert time.monotonic() - begun < 5
    started.wait_for_their_end()
