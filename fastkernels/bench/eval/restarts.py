"""Timed passes: every side in a fresh process in each restart, in an order drawn for that restart."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastkernels.bench.eval.answers import Value, read_answers
from fastkernels.bench.eval.order import Order
from fastkernels.bench.eval.passes import WARM_UP, Pass, Passes
from fastkernels.bench.eval.processes import Nursery, Worker, WorkerFailed
from fastkernels.bench.eval.records import PassRecord

_FIRST_FACTOR = 5
"""How many times its limit the first pass may take: it may compile."""

_BASELINE_FACTOR = 20


@dataclass(frozen=True)
class Limits:
    """Seconds that a candidate may take. start: to build the model. passes: by the workload's kind and label."""

    start: float
    passes: Mapping[tuple[str, str], float]

    @classmethod
    def of(cls, least: float, start: float, measured: Mapping[tuple[str, str], float]) -> Limits:
        """From the baseline's own seconds: 20 times as long, at least `least`; five times that to build the model."""
        passes = {place: max(least, _BASELINE_FACTOR * seconds) for place, seconds in measured.items()}
        return cls(max(5 * least, _BASELINE_FACTOR * start), passes)

    def of_pass(self, one: Pass) -> float:
        return self.passes[one.kind, one.part.label] * (_FIRST_FACTOR if one.number < 0 else 1)


@dataclass
class SideRun:
    """One side in one restart. seconds, answers: by the workload's kind and label; of each pass, or each request."""

    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    answers: dict[tuple[str, str], list[Value]] = field(default_factory=dict)
    replacements: list[dict[str, Any]] = field(default_factory=list)
    engine: dict[str, Any] = field(default_factory=dict)
    confinement: dict[str, Any] = field(default_factory=dict)


@dataclass
class Side:
    """The baseline, or a set. runs: by restart; none after one that failed."""

    name: str
    order: Order
    runs: dict[int, SideRun] = field(default_factory=dict)
    failure: WorkerFailed | None = None


@dataclass(frozen=True)
class _Live:
    """A side's process in one restart, warmed up."""

    side: Side
    worker: Worker
    found: SideRun


@dataclass
class Timing:
    """All restarts of a scenario.

    is_together: the processes of a restart are there at the same time and take turns, pass by pass: forwards through
    the order, then backwards, so that what else the machine does meets neighbours alike. Otherwise, on a GPU whose
    memory one engine fills, one process after another. orders: of the sides, by restart. chosen: the places of the
    answers that are compared, by kind and label, drawn before anything ran and told to nobody.
    """

    passes: Passes
    limits: Limits
    num_passes: int
    chosen: Mapping[tuple[str, str], Sequence[int]]
    facts: Mapping[str, Any]
    is_together: bool
    orders: list[list[str]] = field(default_factory=list)

    def run(
        self,
        nursery: Nursery,
        sides: Sequence[Side],
        numbers: Sequence[int],
        draw: random.Random,
        begins: Callable[[Side, int], None],
    ) -> None:
        """sides: the baseline twice, then candidates. Restarts until these have all failed. Errors: WorkerFailed of a
        baseline."""
        baselines = sides[:2]
        for restart in numbers:
            here = [side for side in sides if side.failure is None]
            if len(here) < 3:
                return
            draw.shuffle(here)
            self.orders.append([side.name for side in here])
            for group in [here] if self.is_together else [[side] for side in here]:
                self._run_group(nursery, group, restart, begins)
                for side in baselines:
                    if side.failure is not None:
                        raise side.failure

    def _run_group(
        self, nursery: Nursery, group: Sequence[Side], restart: int, begins: Callable[[Side, int], None]
    ) -> None:
        """Those that fail on the way have no run of this restart."""
        with ExitStack() as stack:
            live: list[_Live] = []
            for side in group:
                begins(side, restart)
                worker = stack.enter_context(nursery.start(side.order))
                with _blaming(side, worker):
                    worker.ready(self.limits.start)
                    self._warm_up(worker)
                    live.append(_Live(side, worker, SideRun()))
            for number, visit in enumerate(self._visits()):
                for one in live if number % 2 == 0 else reversed(live):
                    with _blaming(one.side, one.worker):
                        self._visit(one, *visit)
                live = [one for one in live if one.side.failure is None]
            for one in live:
                with _blaming(one.side, one.worker):
                    self._report(one)
                    one.side.runs[restart] = one.found

    def _warm_up(self, worker: Worker) -> None:
        for part, kind in self.passes.parts():
            one = self.passes.of(part, kind, WARM_UP)
            for data, requests in [(one.together, one.requests)] if kind == "throughput" else _alone(one):
                reply = worker.call("run", self.limits.of_pass(one), data)
                read_answers(reply.data, requests, self.facts, one.suppressed)

    def _visits(self) -> list[tuple[Pass, int | None]]:
        """Passes, and requests of a latency by their places."""
        found: list[tuple[Pass, int | None]] = []
        for part, kind in self.passes.parts():
            if kind == "throughput":
                found += [(self.passes.of(part, kind, number), None) for number in range(self.num_passes)]
            else:
                one = self.passes.of(part, kind, 0)
                found += [(one, place) for place in range(len(one.requests))]
        return found

    def _visit(self, live: _Live, one: Pass, place: int | None) -> None:
        data, requests = (one.together, one.requests) if place is None else _alone(one)[place]
        reply = live.worker.call("run", self.limits.of_pass(one), data)
        where = (one.kind, one.part.label)
        live.found.seconds.setdefault(where, []).append(reply.seconds)
        answers = read_answers(reply.data, requests, self.facts, one.suppressed)
        chosen = self.chosen[where]
        kept = [answers[n] for n in chosen] if place is None else answers if place in chosen else []
        live.found.answers.setdefault(where, []).extend(kept)

    def _report(self, live: _Live) -> None:
        said = live.worker.call("report", self.limits.start).facts
        live.found.replacements, counters = read_report(said)
        live.found.engine = {"startup_s": live.worker.startup_seconds, "counters": counters}
        live.found.confinement = live.worker.confinement

    def requests(self) -> list[Any]:
        """Those of one restart whose answers are compared, in the order of `compared`."""
        return [
            self.passes.of(part, kind, number).requests[place]
            for part, kind in self.passes.parts()
            for number in range(self.num_passes if kind == "throughput" else 1)
            for place in self.chosen[kind, part.label]
        ]

    def compared(self, run: SideRun) -> list[Value]:
        return [answer for part, kind in self.passes.parts() for answer in run.answers[kind, part.label]]


@contextmanager
def _blaming(side: Side, worker: Worker) -> Iterator[None]:
    """A worker that failed is ended at once: one that hangs would go on computing beside those that are timed."""
    try:
        yield
    except WorkerFailed as error:
        side.failure = error
        worker.end()


def _alone(one: Pass) -> list[tuple[bytes, list[Any]]]:
    return [(data, [request]) for data, request in zip(one.alone, one.requests, strict=True)]


def read_report(facts: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(replacements, counters) as a worker tells them. Errors: WorkerFailed when it tells something else."""
    replacements, counters = facts.get("replacements"), facts.get("counters")
    names = ("op", "set", "status", "num_calls", "rank")
    if not isinstance(counters, dict) or not isinstance(replacements, list):
        raise WorkerFailed("CRASH", "The process did not tell what it replaced.")
    for line in replacements:
        if not isinstance(line, dict) or not all(name in line for name in names):
            raise WorkerFailed("CRASH", "The process told of replacements in another form.")
    return replacements, counters


def pass_records(reference: Side, candidate: Side) -> list[PassRecord]:
    """Of the restarts that both sides have."""
    return [
        PassRecord(restart, label, kind, seconds, candidate.runs[restart].seconds[kind, label])
        for restart, run in reference.runs.items()
        if restart in candidate.runs
        for (kind, label), seconds in run.seconds.items()
    ]


def reference_noise(baseline: Side, again: Side) -> list[float]:
    """log(seconds / seconds of the baseline again) of the same pass or request in the same restart."""
    return [
        math.log(first / second)
        for restart in sorted(set(baseline.runs) & set(again.runs))
        for place, seconds in baseline.runs[restart].seconds.items()
        for first, second in zip(seconds, again.runs[restart].seconds[place], strict=True)
    ]
