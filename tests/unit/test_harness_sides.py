"""What goes wrong is said of the side that it went wrong on."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from fastkernels.capture.case import Case
from fastkernels.harness.answers import Part
from fastkernels.harness.checks import check_call, check_echo
from fastkernels.harness.compare import Expected
from fastkernels.harness.control import HELD_ANSWERS
from fastkernels.harness.expect import Expectation
from fastkernels.harness.groups import make_groups
from fastkernels.harness.judge import Judge
from fastkernels.harness.plans import draw_plan
from fastkernels.harness.pool import Pool
from fastkernels.harness.side import Call, Side
from fastkernels.harness.timing import BASELINE, BASELINE_AGAIN, CANDIDATE
from fastkernels.harness.tolerance import tolerance_for
from fastkernels.harness.verdict import Rejection, Verdict
from fastkernels.registry import ops
from fastkernels.sets import resolve_set
from fastkernels.spec import Compare
from fastkernels.tasks.baseline.L1.rms_norm import RMSNorm

CPU = torch.device("cpu")


class FakeWorker:
    """Answers every request with the same rejection."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict

    def request(self, message: Any, seconds: float | None = None) -> Any:
        raise Rejection(self.verdict, "Too slow, or too large.")


def side(name: str, worker: Any = None) -> Side:
    return Side(worker, ops()["rms_norm"], resolve_set("reference") if name == CANDIDATE else None)


@pytest.mark.parametrize("verdict", [Verdict.TIMEOUT, Verdict.RUNTIME_ERROR, Verdict.INCORRECT_NUMERICAL])
def test_baseline_that_fails_is_no_verdict_on_the_candidate(verdict: Verdict) -> None:
    for name, wanted in ((BASELINE, Verdict.UNTESTABLE), (CANDIDATE, verdict)):
        one = side(name, FakeWorker(verdict))
        with pytest.raises(Rejection, match="Too slow") as caught, one.blame():
            one.load({"hidden_size": 4}, torch.float32)
        assert caught.value.verdict is wanted
        assert ("The baseline of rms_norm itself fails here" in caught.value.message) == (name == BASELINE)


@pytest.mark.parametrize(
    ("name", "factor", "wanted"),
    [
        (BASELINE, 3, None),
        (BASELINE_AGAIN, 5, Verdict.UNTESTABLE),
        (CANDIDATE, 3, Verdict.INCORRECT_NUMERICAL),
    ],
)
def test_timed_answers_of_the_baseline_are_held_to_its_own_limits(
    name: str, factor: int, wanted: Verdict | None
) -> None:
    """An answer whose one row is off by `factor` of the tolerance."""
    x = torch.randn(1, 4096, generator=torch.Generator().manual_seed(1))
    case = Case("rms_norm", {"hidden_size": 4096}, {"x": x}, {"weight": torch.ones(4096)}, torch.float32)
    group = make_groups(ops()["rms_norm"], [case], (), 0, CPU, torch.Generator())[0]
    one, judge = side(name), Judge.__new__(Judge)
    judge.oracle_device = CPU
    one.pool = Pool(group.op, [case], 1000, CPU)
    (planned,) = draw_plan(one.pool, 1)
    exact = group.exact.reference(one.pool.case(0, planned.variation).inputs["x"].double()).detach()
    sign = 1 - 2 * torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(2))
    off = factor * tolerance_for("rms_norm", torch.float32, "captured", "y").row
    call = Call(1000, 10, 0, 0, 0, False, (Part("tensor", {}, (exact * (1 + off * sign)).float()),))
    check = judge._timed_check(ops()["rms_norm"], group)
    with nullcontext() if wanted is None else pytest.raises(Rejection) as caught, one.blame():
        check(one, planned, call)
    assert caught is None or caught.value.verdict is wanted


@pytest.mark.parametrize("is_sequence", [False, True])
def test_tuple_of_one_is_not_the_value_itself(is_sequence: bool) -> None:
    """Who unpacks one, or computes with the other, fails in the model."""
    op, value = RMSNorm(8), torch.ones(2, 8)
    expected = Expected("y", value.double(), torch.float32, Compare.VALUES)
    call = Call(1000, 10, 0, 0, 0, False, (Part("tensor", {}, value),), is_sequence=is_sequence)
    tolerances = {"y": tolerance_for("rms_norm", torch.float32, "normal", "y")}
    check_call(op, Expectation((expected,), {}, is_sequence), call, tolerances, {})
    with pytest.raises(Rejection, match="Returned was") as caught:
        check_call(op, Expectation((expected,), {}, not is_sequence), call, tolerances, {})
    assert caught.value.verdict is Verdict.INCORRECT_SHAPE


def test_earlier_answers_are_kept_as_long_as_a_worker_may_show_them() -> None:
    earlier: dict[int, tuple[Part, ...]] = {}
    for sequence in range(1, 30):
        parts = (Part("tensor", {}, torch.full((4,), float(sequence))),)
        shown = sequence - HELD_ANSWERS
        call = Call(1000, 10, 0, 0, 0, False, parts, sequence=sequence)
        if shown > 0:
            with pytest.raises(Rejection, match="An earlier answer changed"):
                check_echo(replace(call, echo=(shown, parts)), earlier)
            call = replace(call, echo=(shown, (Part("tensor", {}, torch.full((4,), float(shown))),)))
        check_echo(call, earlier)
        assert len(earlier) <= HELD_ANSWERS
