"""Answers too large to be copied out every time: a few bytes of each are wanted at once, and must be of the answer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import Bench, bench, rms_norm

from fastkernels.capture.case import Case
from fastkernels.harness.judge import JudgeConfig
from fastkernels.harness.sample import SAMPLE_BYTES, Sample
from fastkernels.harness.timing import Protocol
from fastkernels.harness.verdict import Verdict

__all__ = ["bench"]

CONFIG = JudgeConfig(dtypes=(), num_shapes=1, num_timed=1, protocol=Protocol(num_restarts=1, num_blocks=4))
WORKER = """
worker, frame = None, sys._getframe()
while frame is not None and worker is None:
    if frame.f_code.co_name == "one_call":
        worker, sequence = frame.f_locals["self"], frame.f_locals["sequence"]
    frame = frame.f_back
"""


@pytest.fixture(scope="module")
def case() -> Case:
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(400, 1024, generator=generator) for _ in range(2))
    weight = {"weight": torch.ones(1024)}
    return Case("rms_norm", {"hidden_size": 1024}, {"x": x, "residual": residual}, weight, torch.float32)


@settings(deadline=None)
@given(st.integers(0, 2**48 - 1), st.lists(st.integers(0, 1 << 20), min_size=1, max_size=3))
def test_sample_lies_inside_a_part_and_reaches_over_all_of_it(lot: int, sizes: list[int]) -> None:
    chosen = Sample.drawn(lot, sizes)
    if not any(sizes):
        assert chosen is None
        return
    assert chosen is not None
    size = sizes[chosen.part]
    last = chosen.start + (chosen.count - 1) * chosen.step + chosen.width
    assert 0 < chosen.num_bytes <= SAMPLE_BYTES
    assert last <= size
    if size > SAMPLE_BYTES:
        assert chosen.start < size // 64
        assert last > size * 62 // 64 - 64
    else:
        assert chosen.num_bytes == size


def test_sample_of_other_lots_is_elsewhere() -> None:
    raw = torch.arange(1 << 20).to(torch.uint8)
    found = {bytes(Sample.drawn(lot, [1 << 20]).of(raw).tolist()) for lot in range(0, 10_000, 97)}  # type: ignore[union-attr]
    assert len(found) > 50


@pytest.mark.timed
def test_right_candidate_with_a_large_answer_passes(bench: Bench, case: Case) -> None:
    record = bench.judge("rms_norm", rms_norm("return self.right(x, residual)"), CONFIG, [case])
    assert record.verdict == Verdict.PASSED, record.message
    settled = [n for s in record.timings[0].samples for n in s.settle_ns]
    claimed = [n for s in record.timings[0].samples for n in s.claim_ns]
    assert len(settled) == len(claimed)  # of every answer something is wanted


@pytest.mark.timed
def test_work_after_a_large_answer_was_claimed_is_unpaid_work(bench: Bench, case: Case) -> None:
    body = f"""{WORKER}
if worker is not None and not worker.bell.read(112):
    worker.bell.write(40, sequence)  # DONE
    time.sleep(0.001)
return self.right(x, residual)
"""
    record = bench.judge("rms_norm", rms_norm(body), CONFIG, [case])
    assert record.verdict == Verdict.CHEATING, record.message
    assert "after the call had claimed to be done" in record.message


@pytest.mark.timed
def test_sample_of_another_answer_is_cheating(bench: Bench, case: Case) -> None:
    body = f"""{WORKER}
if worker is not None:
    worker.publisher.sample = lambda answer, lot: None
return self.right(x, residual)
"""
    record = bench.judge("rms_norm", rms_norm(body), CONFIG, [case])
    assert record.verdict == Verdict.CHEATING, record.message
    assert "another one" in record.message
