"""An untimed run of a model with a set: does it run, is it called, and are its answers the reference's?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastkernels.bench.eval.answers import Comparer, Pair, Value, read_answers
from fastkernels.bench.eval.order import Order
from fastkernels.bench.eval.passes import Pass
from fastkernels.bench.eval.processes import Nursery, WorkerFailed
from fastkernels.bench.eval.restarts import Limits, read_report
from fastkernels.scoring.discrepancy import AnswerError
from fastkernels.scoring.items import Item, Outcome, Thresholds
from fastkernels.scoring.macroeval import item_correctness

INACCURATE = "INACCURATE"
"""The reason of a part of a set whose answers are not within what the manifest allows; no reason of an item."""


@dataclass
class Trial:
    """failure: None when the model ran. answers: as long as they are not compared; then discrepancies."""

    failure: WorkerFailed | None = None
    replacements: list[dict[str, Any]] = field(default_factory=list)
    answers: list[Value] = field(default_factory=list)
    discrepancies: list[float] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    is_accurate: bool = False

    @property
    def is_called(self) -> bool:
        return any(line["num_calls"] for line in self.replacements)

    @property
    def reason(self) -> str | None:
        """Why this is not deployable."""
        if self.failure is not None:
            return self.failure.reason
        return None if self.is_accurate else INACCURATE


@dataclass
class Trials:
    """Trials of one scenario: one pass of few requests, whose answers by the reference are there."""

    nursery: Nursery
    one: Pass
    expected: Sequence[Value]
    limits: Limits
    comparer: Comparer
    thresholds: Thresholds
    facts: Mapping[str, Any]

    def run(self, order: Order) -> Trial:
        """Not compared yet: see `compare`."""
        found = Trial()
        try:
            with self.nursery.start(order) as worker:
                worker.ready(self.limits.start)
                data = self.one.packed(self.one.requests, wants_logprobs="vocab_size" in self.facts)
                reply = worker.call("run", self.limits.of_pass(self.one), data)
                found.answers = read_answers(reply.data, self.one.requests, self.facts, self.one.suppressed)
                found.replacements, _ = read_report(worker.call("report", self.limits.start).facts)
        except WorkerFailed as error:
            found.failure = error
        return found

    def compare(self, trials: Sequence[Trial]) -> None:
        """Those that ran. Errors: ReferenceUnfit."""
        ran = [trial for trial in trials if trial.failure is None]
        self.comparer.read_ahead([pair for trial in ran for pair in self._pairs(trial)])
        for trial in ran:
            try:
                compared = self.comparer.compare(self._pairs(trial))
            except AnswerError as error:
                trial.failure = WorkerFailed(error.reason, str(error))
                continue
            trial.discrepancies, trial.figures = list(compared.values), compared.figures
            trial.is_accurate = is_accurate(trial.discrepancies, self.thresholds)

    def _pairs(self, trial: Trial) -> list[Pair]:
        return [Pair(*three) for three in zip(self.one.requests, self.expected, trial.answers, strict=True)]


def is_accurate(discrepancies: Sequence[float], thresholds: Thresholds) -> bool:
    item = Item("", "", Outcome.MEASURED, thresholds, tuple(discrepancies))
    return item_correctness(item) >= thresholds.tau
