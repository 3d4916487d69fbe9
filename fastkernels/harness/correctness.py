"""Whether an implementation answers as its op's definition does: every case of a group's pools, on both sides."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict

import torch

from fastkernels.capture.case import Case
from fastkernels.harness.checks import (
    Draws,
    beside_baseline,
    check_again,
    check_call,
    check_same_draws,
    digest,
    worst_of,
)
from fastkernels.harness.compare import Finding
from fastkernels.harness.expect import Expectation, expectation
from fastkernels.harness.groups import Group, answer_bytes
from fastkernels.harness.inputs import draw_params
from fastkernels.harness.plans import near_duplicates
from fastkernels.harness.pool import PlannedCall, Pool
from fastkernels.harness.records import CaseRecord, OpRecord
from fastkernels.harness.side import Call, Side
from fastkernels.harness.timing import BASELINE, CANDIDATE
from fastkernels.harness.tolerance import Tolerance, tolerances_for
from fastkernels.harness.verdict import Rejection, Verdict

BASELINE_FACTOR = 4.0
"""Of the tolerance: a baseline beyond it is wrong here, and nothing can be judged beside it."""

_TELLING = ("captured", "normal", "heavy_tailed")
"""Families whose answers change with every element."""

Given = tuple[tuple[str, ...], CaseRecord]
"""The digest of an answer, and the row that tells of its call."""


def pool_of(group: Group, cases: list[Case], device: torch.device) -> Pool:
    """Cases of one shape as both sides lay them out; device: where the definition runs."""
    return Pool(group.op, cases, answer_bytes(group, cases[0]), device, group.exact)


def pools_of(group: Group, device: torch.device) -> list[Pool]:
    return [pool_of(group, cases, device) for cases in group.pools]


class Correctness:
    """One group on two workers that have it loaded; each call's row is added to `record`. tell: called before each
    pool, with its shapes and the share of pools that are done."""

    def __init__(
        self,
        group: Group,
        sides: Mapping[str, Side],
        record: OpRecord,
        generator: torch.Generator,
        device: torch.device,
        tell: Callable[[str, float], None] = lambda shapes, share: None,
    ) -> None:
        self.group, self.sides, self.record, self.generator, self.device = group, sides, record, generator, device
        self.tell = tell
        self.is_remote = device.type == "cuda"

    def check(self) -> None:
        """Every case of every pool, in a random order; halfway through, the weights change in place.

        Errors: Rejection of the first wrong answer.
        """
        half = (len(self.group.pools) + 1) // 2
        draws = Draws()
        for number, pool in enumerate(pools_of(self.group, self.device)):
            if number == half and self.group.params:
                self._swap_weights()
            self.tell(pool.cases[0].shapes(), number / len(self.group.pools))
            self._check_pool(pool, draws)
        draws.check()

    def _check_pool(self, pool: Pool, draws: Draws) -> None:
        expectations = [expectation(self.group.exact, case, self.device) for case in pool.cases]
        drawn: dict[int, Call] = {}
        earlier: dict[int, Given] = {}
        for side in self.sides.values():
            with side.blame():
                side.lay_out(pool, self.is_remote, flush_bytes=0, num_held=pool.num_held)
        order = torch.randperm(len(pool.cases), generator=self.generator).tolist()
        for index in [*order, order[0]]:
            is_echoed = pool.is_small or index == order[0]
            plan = PlannedCall(index, None, True, is_sealed=bool(secrets.randbelow(2)), is_echoed=is_echoed)
            call = self._check_one(pool, plan, expectations[index], earlier)
            if index not in drawn:
                draws.add(expectations[index], call, pool.cases[index].inputs)
            check_same_draws(expectations[index], drawn.setdefault(index, call), call)
        # Zeros and single ones come out much the same however they are varied: others tell more.
        telling = [index for index in order if pool.cases[index].family in _TELLING]
        for plan in near_duplicates(pool, (telling or order)[-1], self.generator):
            expected = expectation(self.group.exact, pool.case(plan.index, plan.variation), self.device)
            self._check_one(pool, plan, expected, earlier)
        self._show_again(pool, earlier)

    def _show_again(self, pool: Pool, earlier: Mapping[int, Given]) -> None:
        """Answers that are still held must be what they were when they were read."""
        shown = list(earlier)[-pool.num_held :]
        secrets.SystemRandom().shuffle(shown)
        for sequence in shown:
            before, row = earlier[sequence]
            with _told_of(row):
                check_again(before, self.sides[CANDIDATE].again(sequence))

    def _swap_weights(self) -> None:
        self.group.use_params(draw_params(self.group.op, self.generator))
        for side in self.sides.values():
            with side.blame():
                side.put_params(self.group.params)

    def _check_one(self, pool: Pool, planned: PlannedCall, expected: Expectation, earlier: dict[int, Given]) -> Call:
        """The candidate's call, looked at. Errors: Rejection of what is wrong."""
        case = pool.case(planned.index, planned.variation)
        row = CaseRecord(
            case=case.family if case.family != "captured" else f"captured {case.shapes()}",
            family=case.family,
            phase=case.phase.value if case.phase else "",
            dtype=str(case.dtype).removeprefix("torch."),
            shapes=case.shapes(),
            verdict=Verdict.PASSED.value,
        )
        self.record.cases.append(row)
        tolerances = tolerances_for(self.record.op, case.dtype, case.family, expected)
        with _told_of(row):
            found = self._baseline_findings(planned, expected, tolerances, case)
            row.baseline_error = asdict(worst_of(found).error)
            is_widened = case.family != "wide_range" or self.record.level > 1
            expected, tolerances = beside_baseline(expected, tolerances, found, is_widened=is_widened)
            row.tolerance = {name: t.to_json() for name, t in tolerances.items()}
            call = self.sides[CANDIDATE].calls([planned])[0]
            self.record.num_calls += 1
            finding = worst_of(check_call(self.group.op, expected, call, tolerances, case.inputs))
            row.error, row.share = asdict(finding.error), asdict(finding.share)
            assert call.parts is not None
            earlier[call.sequence] = digest(call.parts), row
            return call

    def _baseline_findings(
        self, planned: PlannedCall, expected: Expectation, tolerances: Mapping[str, Tolerance], case: Case
    ) -> dict[str, Finding]:
        """The production path's own error here; the judge refuses to go on when it is plainly wrong.

        Errors: Rejection UNTESTABLE.
        """
        side = self.sides[BASELINE]
        with side.blame():
            call = side.calls([planned])[0]
            return check_call(self.group.op, expected, call, tolerances, case.inputs, BASELINE_FACTOR)


@contextmanager
def _told_of(row: CaseRecord) -> Iterator[None]:
    """What goes wrong within is said of this call."""
    try:
        yield
    except Rejection as rejection:
        row.verdict, row.message = rejection.verdict.value, rejection.message
        where = f"[{row.family}{' ' + row.phase if row.phase else ''} {row.dtype} {row.shapes}]"
        rejection.message = f"{rejection.message.rstrip()} {where}"
        raise
