"""What no candidate can change, because no candidate is asked: turns, samples, collectives."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

from fastkernels.adversarial.catalogue import twins
from fastkernels.adversarial.self_test import SelfTest, config_for
from fastkernels.harness import timing
from fastkernels.harness.judge import Judge
from fastkernels.harness.timing import BASELINE, BASELINE_AGAIN, CANDIDATE
from fastkernels.registry import ops
from fastkernels.sets import resolve_set


@pytest.fixture(scope="module")
def timed_record(cpu_suite: SelfTest) -> object:
    twin = next(t for t in twins() if t.name == "library_call")
    judge = Judge(config_for(twin, "cpu"), cpu_suite.nursery)
    return judge.judge(ops()[twin.op], resolve_set(twin.path), [])


@pytest.mark.timed
def test_turns_are_balanced_and_random(timed_record: object) -> None:
    """Both get two turns a block, in ABBA or BAAB; a heated or rested device serves both alike."""
    samples = [s for s in timed_record.timings[0].samples if s.block >= 0]
    orders = set()
    for block in {s.block for s in samples}:
        order = [s.side for s in samples if s.block == block]
        assert (order.count(BASELINE), order.count(CANDIDATE), order.count(BASELINE_AGAIN)) == (2, 2, 1)
        orders.add(tuple(side for side in order if side != BASELINE_AGAIN))
    assert orders <= {(BASELINE, CANDIDATE, CANDIDATE, BASELINE), (CANDIDATE, BASELINE, BASELINE, CANDIDATE)}


@pytest.mark.timed
def test_every_sample_is_kept_and_none_is_chosen(timed_record: object) -> None:
    """As many visits as were planned before anything was seen, each with all its calls but the sealed ones."""
    protocol = config_for(next(t for t in twins() if t.name == "library_call"), "cpu").protocol
    samples = timed_record.timings[0].samples
    visits = [s for s in samples if s.side == CANDIDATE and s.block >= 0]
    assert len(visits) == 2 * protocol.num_blocks * protocol.num_restarts
    assert all(1 <= len(s.claim_ns) <= 4 * protocol.calls_per_visit for s in visits)
    assert "num_blocks" not in inspect.getsource(timing.visit_ns)


def test_a_collective_is_not_judged_in_one_process(cpu_suite: SelfTest, tmp_path: Path) -> None:
    """A copy of the input would be right with one rank."""
    (tmp_path / "L1").mkdir()
    (tmp_path / "L1" / "allreduce.py").write_text(
        "from torch import Tensor, nn\n\n\nclass AllReduce(nn.Module):\n"
        "    def forward(self, x: Tensor) -> Tensor:\n        return x\n"
    )
    judge = Judge(config_for(twins()[0], "cpu"), cpu_suite.nursery)
    record = judge.judge(ops()["allreduce"], resolve_set(tmp_path), [])
    assert record.verdict == "UNTESTABLE"


def test_the_judge_unpickles_nothing() -> None:
    """An object that runs code when unpickled came back as a verdict; the code did not run here."""
    assert not hasattr(sys, "fastkernels_unpickled")
    harness = Path(timing.__file__).parent
    assert not [
        p.name for p in harness.glob("*.py") if "import pickle" in p.read_text() or "torch.load" in p.read_text()
    ]
