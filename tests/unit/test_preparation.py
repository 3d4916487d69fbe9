"""Requests with grammars are made ready beside the engine's steps, whatever that takes and whatever goes wrong."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from fastkernels.engine.outputs import EngineRequest
from fastkernels.engine.process import Channel, EngineLoop
from fastkernels.engine.sampling_params import SamplingParams, SamplingParamsError, StructuredOutputsParams


class Core:
    """Checks a request when it may, and counts what it is asked for."""

    def __init__(self) -> None:
        self.may_check, self.is_checking = threading.Event(), threading.Event()
        self.added: list[str] = []
        self.checked: list[str] = []
        self.num_steps = 0
        self.has_unfinished = False

    def check(self, request: EngineRequest) -> None:
        self.checked.append(request.request_id)
        self.is_checking.set()
        assert self.may_check.wait(10)
        if request.request_id == "wrong":
            raise SamplingParamsError("structured_outputs.regex", "no regex")

    def add(self, request: EngineRequest) -> None:
        self.added.append(request.request_id)
        self.has_unfinished = True

    def abort(self, request_ids: Sequence[str]) -> None:
        pass

    def step(self) -> list[Any]:
        self.num_steps += 1
        return []


@pytest.fixture
def loop() -> Iterator[EngineLoop]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        made = EngineLoop(Core(), Channel(theirs))  # type: ignore[arg-type]
        made.parent = Channel(ours)  # type: ignore[attr-defined]
        yield made
        made.core.may_check.set()  # type: ignore[union-attr]


def request(name: str, has_grammar: bool = True) -> EngineRequest:
    wanted = StructuredOutputsParams(regex="a") if has_grammar else None
    return EngineRequest(name, (5,), SamplingParams(structured_outputs=wanted))


def told(loop: EngineLoop) -> list[tuple[Any, ...]]:
    return loop.parent.receive(may_block=False)  # type: ignore[attr-defined]


def test_others_are_stepped_while_a_grammar_is_compiled(loop: EngineLoop) -> None:
    core: Any = loop.core
    loop.handle(("add", [request("slow"), request("plain", has_grammar=False)]))
    assert core.is_checking.wait(10)
    for _ in range(3):
        loop.turn()
    assert (core.added, core.num_steps) == (["plain"], 3)


def test_an_idle_engine_wakes_when_a_grammar_is_compiled(loop: EngineLoop) -> None:
    core: Any = loop.core
    loop.handle(("add", [request("slow")]))
    threading.Timer(0.05, core.may_check.set).start()
    loop.turn()
    assert (core.added, core.num_steps) == (["slow"], 1)


def test_a_grammar_that_is_refused_is_told_and_the_next_is_taken(loop: EngineLoop) -> None:
    core: Any = loop.core
    core.may_check.set()
    loop.handle(("add", [request("wrong"), request("right")]))
    while not core.added:
        loop.turn()
    assert core.added == ["right"]
    assert told(loop) == [("refused", "wrong", "parameter", "structured_outputs.regex", "no regex")]


def test_a_request_that_is_aborted_meanwhile_is_not_taken(loop: EngineLoop) -> None:
    core: Any = loop.core
    loop.handle(("add", [request("left"), request("next")]))
    assert core.is_checking.wait(10)
    loop.handle(("abort", ["left", "unknown"]))
    core.may_check.set()
    while not core.added:
        loop.turn()
    assert core.added == ["next"]


def test_a_grammar_whose_request_was_dropped_is_not_compiled(loop: EngineLoop) -> None:
    core: Any = loop.core
    loop.handle(("add", [request("first"), request("left"), request("next")]))
    assert core.is_checking.wait(10)
    loop.handle(("abort", ["left"]))
    core.may_check.set()
    while len(core.added) < 2:
        loop.turn()
    assert core.checked == core.added == ["first", "next"]
