"""What goes wrong is said of the side that it went wrong on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastkernels.capture.case import Case
from fastkernels.harness import correctness
from fastkernels.harness.answers import Part
from fastkernels.harness.arena import Arena
from fastkernels.harness.checks import check_again, check_call, digest
from fastkernels.harness.compare import Expected
from fastkernels.harness.control import HELD_ANSWERS, Bell
from fastkernels.harness.expect import Expectation
from fastkernels.harness.groups import make_groups
from fastkernels.harness.judge import Judge, JudgeConfig
from fastkernels.harness.plans import draw_plan
from fastkernels.harness.pool import Pool
from fastkernels.harness.records import CaseRecord
from fastkernels.harness.side import Call, Side
from fastkernels.harness.timing import BASELINE, BASELINE_AGAIN, CANDIDATE
from fastkernels.harness.tolerance import tolerance_for
from fastkernels.harness.verdict import BaselineFailed, Rejection, Verdict
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


class _Answering:
    """A side of a worker that answers, or not."""

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def lay_out(self, pool: Any, *given: Any, **words: Any) -> None: ...

    def calls(self, plan: Any) -> None:
        if self.fails:
            raise BaselineFailed(Verdict.TIMEOUT, "Too slow alone, too.")


@pytest.mark.parametrize(
    ("cause", "fails_alone", "wanted", "alone"),
    [
        (Verdict.TIMEOUT, False, Verdict.JUDGE_ERROR, 1),
        (Verdict.RUNTIME_ERROR, False, Verdict.JUDGE_ERROR, 1),
        (Verdict.TIMEOUT, True, Verdict.UNTESTABLE, 1),
        (Verdict.INCORRECT_NUMERICAL, False, Verdict.UNTESTABLE, 0),
    ],
)
def test_a_candidate_that_starves_the_baseline_makes_no_op_untestable(
    monkeypatch: pytest.MonkeyPatch, cause: Verdict, fails_alone: bool, wanted: Verdict, alone: int
) -> None:
    opened = []

    @contextmanager
    def open_sides(self: Judge, entry: Any, implementations: Any, group: Any, names: Any, *rest: Any) -> Iterator[Any]:
        opened.append(names)
        yield {name: _Answering(fails_alone) for name in names}

    monkeypatch.setattr(Judge, "_opened", open_sides)
    judge, pool = Judge.__new__(Judge), SimpleNamespace(cases=[1, 2], num_held=2)
    judge.config = JudgeConfig()
    row = CaseRecord("normal", "normal", "", "float32", "x[2]", "PASSED")
    with (
        pytest.raises(Rejection, match="Too slow beside it") as caught,
        judge._sides(ops()["rms_norm"], None, None, [BASELINE, CANDIDATE], None, [pool]),
        correctness._told_of(row),
        side(BASELINE).blame(),
    ):
        raise Rejection(cause, "Too slow beside it.")
    assert caught.value.verdict is wanted
    assert row.message.endswith("itself fails here: Too slow beside it.")
    assert "[normal float32 x[2]]" in caught.value.message
    assert opened == [[BASELINE, CANDIDATE], *[[BASELINE]] * alone]


class LyingWorker:
    """Replies with what it was given."""

    def __init__(self, reply: dict[str, Any]) -> None:
        self.given, self.arena, self.bell = reply, Arena(1 << 16), Bell(memoryview(bytearray(1 << 12)).cast("Q"))

    def request(self, message: Any, seconds: float | None = None) -> Any:
        return self.given

    def is_alive(self) -> bool:
        return True


NO_MEASUREMENTS = ["soon", None, ["1.0"], {}, True, -1.0, float("nan"), float("inf"), 10**400]


@pytest.mark.parametrize("value", NO_MEASUREMENTS, ids=lambda value: str(value)[:8])
def test_measurement_that_is_none_is_the_fault_of_who_sent_it(value: Any) -> None:
    for reply in ({"setup_seconds": value}, {}):
        with pytest.raises(Rejection, match="measurement was expected") as caught:
            side(CANDIDATE, LyingWorker(reply)).put_params({})
        assert caught.value.verdict is Verdict.RUNTIME_ERROR
    for times in ({"nanoseconds": [1, value]}, {"nanoseconds": value}, {"nanoseconds": []}, {}):
        with pytest.raises(Rejection, match="The worker sent") as caught:
            side(CANDIDATE, LyingWorker(times)).graph_us(1)
        assert caught.value.verdict is Verdict.RUNTIME_ERROR


def test_measurements_are_read() -> None:
    one = side(CANDIDATE, LyingWorker({"setup_seconds": 2, "nanoseconds": [3000, 1000.0, 2000]}))
    one.put_params({})
    assert one.setup_seconds == 2.0
    assert one.graph_us(3) == 2.0


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


def test_answer_that_is_shown_again_holds_the_same_bytes() -> None:
    value = torch.tensor([1.0, float("nan"), 0.0])
    before = digest([Part("tensor", {}, value), Part("none", {})])
    check_again(before, [Part("tensor", {}, value.clone()), Part("none", {})])
    for now in ([value], [value, value], [-value, None], [value.double(), None], [value[None], None], [None, None]):
        parts = [Part("none" if tensor is None else "tensor", {}, tensor) for tensor in now]
        with pytest.raises(Rejection, match="An earlier answer changed") as caught:
            check_again(before, parts)
        assert caught.value.verdict is Verdict.INCORRECT_NUMERICAL


def test_all_answers_are_held_but_for_very_large_ones() -> None:
    case = Case("rms_norm", {"hidden_size": 8}, {"x": torch.ones(2, 8)}, {"weight": torch.ones(8)}, torch.float32)
    held = [Pool(RMSNorm(8), [case], num_bytes, CPU).num_held for num_bytes in (0, 1 << 20, 1 << 27, 1 << 40)]
    assert held == [64, 64, 8, HELD_ANSWERS]
