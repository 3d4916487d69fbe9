"""Nothing is computed while the judge writes a call's inputs."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from judging import Bench, bench, rms_norm, wait_until

from fastkernels.capture.case import Case
from fastkernels.harness.judge import JudgeConfig
from fastkernels.harness.pause import DIRECT_BYTES, stopped
from fastkernels.harness.process_tree import end_tree, process_tree
from fastkernels.harness.timing import Protocol
from fastkernels.harness.verdict import Verdict

__all__ = ["bench"]

TIMED = JudgeConfig(dtypes=(), num_shapes=1, num_timed=1, protocol=Protocol(num_restarts=1, num_blocks=4))
COUNTS = """
import os, sys, threading, time

def count(name):
    number = 0
    while True:
        number += 1
        with open(sys.argv[1] + "/" + name, "w") as file:
            file.write(str(number))
        time.sleep(0.001)

if os.fork() == 0 and os.fork() == 0:
    count("grandchild")
threading.Thread(target=count, args=("thread",)).start()
count("process")
"""


@pytest.fixture(scope="module")
def case() -> Case:
    """1.5 MB of inputs: writing them takes tenths of a millisecond."""
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(192, 1024, generator=generator) for _ in range(2))
    weight = {"weight": torch.ones(1024)}
    return Case("rms_norm", {"hidden_size": 1024}, {"x": x, "residual": residual}, weight, torch.float32)


def test_process_its_threads_and_its_descendants_stop_and_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(COUNTS), str(tmp_path)]
    process = subprocess.Popen(command, start_new_session=True)

    def counts() -> list[str]:
        return [(tmp_path / name).read_text() for name in ("process", "thread", "grandchild")]

    try:
        assert wait_until(lambda: len(list(tmp_path.iterdir())) == 3 and len(process_tree(process.pid)) >= 2, 10)
        with stopped(process.pid, lambda: None):
            before = counts()
            time.sleep(0.1)
            assert counts() == before
        assert wait_until(lambda: all(a != b for a, b in zip(counts(), before, strict=True)), 5)
    finally:
        end_tree(process.pid, seconds=2)
        process.wait()


def test_process_that_is_gone_is_no_error() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with stopped(process.pid, lambda: None):
        pass


def test_who_does_not_stop_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up() -> None:
        raise TimeoutError

    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with monkeypatch.context() as patch:
            patch.setattr("os.kill", lambda pid, signal: None)
            with pytest.raises(TimeoutError), stopped(process.pid, give_up):
                pass
    finally:
        process.kill()
        process.wait()


WATCHES = """
if not hasattr(self, "seen"):
    self.seen = []
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != "one_call":
        frame = frame.f_back
    if frame is not None:
        worker = frame.f_locals["self"]
        wait, read, inputs = worker.bell.wait, worker.bell.read, type(worker.plan).inputs
        given = []

        def keep(plan, bell, module):
            given[:] = [inputs(plan, bell, module)]
            return given[0]

        def look(word, value, check=None):
            if word in (16, 200) and given and len(given[0].region) > 1 << 20:  # GO, WAKE: whichever comes first
                words = given.pop().region.view(torch.int32)
                first, last = words[64:65], words[-256 // 4 - 64 - 1:][:1]
                before = first.item(), last.item()
                while read(word) != value:
                    if first.item() != before[0] and last.item() == before[1]:
                        self.seen.append((value, word, before, first.item(), last.item()))
            wait(word, value, check)

        type(worker.plan).inputs = keep
        worker.bell.wait = look
if self.seen:
    raise RuntimeError(f"half of the inputs was seen {len(self.seen)} times: {self.seen[:3]}, {self.seen[-1]}")
return self.right(x, residual)
"""


@pytest.mark.slow
def test_inputs_are_not_seen_before_all_of_them_are_there(bench: Bench, case: Case) -> None:
    """The first call of a process installs the look; those after it have fresh values at the same place."""
    record = bench.judge("rms_norm", rms_norm(WATCHES), TIMED, [case])
    assert record.verdict == Verdict.PASSED, record.message


@pytest.mark.timed
def test_work_between_waking_and_saying_so_is_unpaid_work(bench: Bench, case: Case) -> None:
    body = """
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != "one_call":
        frame = frame.f_back
    if frame is not None and "write" not in vars(frame.f_locals["self"].bell):
        bell = frame.f_locals["self"].bell
        write = bell.write

        def late(word, value):
            if word == 208:  # AWAKE
                time.sleep(0.001)
            write(word, value)

        bell.write = late
    return self.right(x, residual)
    """
    record = bench.judge("rms_norm", rms_norm(body), TIMED, [case])
    assert record.verdict == Verdict.CHEATING, record.message
    assert "to the clock's start" in record.message


@pytest.mark.timed
def test_small_inputs_are_written_without_a_pause(bench: Bench) -> None:
    small = Case("rms_norm", {"hidden_size": 8}, {"x": torch.ones(2, 8)}, {"weight": torch.ones(8)}, torch.float32)
    large = Case("rms_norm", {"hidden_size": 8}, {"x": torch.ones(999, 8)}, {"weight": torch.ones(8)}, torch.float32)
    assert large.inputs["x"].numel() * 4 > DIRECT_BYTES
    for one, is_paused in ((small, False), (large, True)):
        record = bench.judge("rms_norm", rms_norm("return self.right(x, residual)"), TIMED, [one])
        assert record.verdict == Verdict.PASSED, record.message
        woken = [n for s in record.timings[0].samples for n in s.stage_ns]  # type: ignore[attr-defined]
        assert woken
        assert all((n > 0) == is_paused for n in woken)
