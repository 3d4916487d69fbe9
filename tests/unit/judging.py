"""What the tests of the judge share: one nursery a session, candidate files from text, a look at what is left."""

from __future__ import annotations

import contextlib
import os
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from fastkernels.capture.case import Case
from fastkernels.harness.judge import Judge, JudgeConfig
from fastkernels.harness.records import OpRecord
from fastkernels.harness.timing import Protocol
from fastkernels.harness.workers import Limits, Nursery
from fastkernels.registry import ops
from fastkernels.sets import resolve_set

CHECK_ONLY = JudgeConfig(num_shapes=2, is_timed=False)
TIMED = JudgeConfig(num_shapes=2, num_timed=1, protocol=Protocol(num_restarts=2, num_blocks=6, calls_per_visit=3))
LIMITS = Limits(load_seconds=30.0, call_seconds=3.0, first_call_factor=1.0, memory_bytes=1200 << 20)

RMS_NORM = """
import os, sys, time
import torch
from torch import nn

class RMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.hidden_size, self.eps = hidden_size, eps
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.num_calls = 0

    def right(self, x, residual=None):
        h = x.float() if residual is None else x.float() + residual.float()
        y = (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps) * self.weight.float()).to(x.dtype)
        return y if residual is None else (y, h.to(x.dtype))

    def forward(self, x, residual=None):
        self.num_calls += 1
        if residual is None:
            return self.right(x)
{body}
"""


def rms_norm(body: str) -> str:
    """RMSNorm whose forward with a residual is `body`; self.right(x, residual) is the right answer."""
    return RMS_NORM.replace("{body}", textwrap.indent(textwrap.dedent(body).strip("\n"), " " * 8))


def write_set(folder: Path, op: str, source: str) -> Path:
    """An implementation set with one file: the text for the file of `op`."""
    file = folder / ops()[op].file_name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(source))
    return folder


def workers(nursery: Nursery) -> list[psutil.Process]:
    """Processes that a nursery started and that run."""
    found = []
    for process in psutil.Process(nursery._process.pid).children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@dataclass
class Bench:
    """Judges a candidate given as text; checks after each that nothing of its worker is left."""

    nursery: Nursery
    folder: Path
    judges: dict[JudgeConfig, Judge] = field(default_factory=dict)
    num_sets: int = 0

    def judge(self, op: str, source: str, config: JudgeConfig = CHECK_ONLY, cases: Sequence[Case] = ()) -> OpRecord:
        self.num_sets += 1
        implementations = resolve_set(write_set(self.folder / f"set{self.num_sets}", op, source))
        judge = self.judges.setdefault(config, Judge(config, self.nursery))
        record = judge.judge(ops()[op], implementations, cases)
        self.assert_clean()
        return record

    def assert_clean(self) -> None:
        deadline = time.monotonic() + 20  # of a machine that does much else
        while (left := workers(self.nursery)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not left
        assert not [p for p in self.nursery._folder.iterdir() if p.is_dir()]


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Nursery("cpu", LIMITS) as nursery:
        yield Bench(nursery, tmp_path_factory.mktemp("sets"))


@pytest.fixture
def one_nursery(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps of a test that does not ask what is left of theirs start none of their own."""
    monkeypatch.setattr("fastkernels.bench.sweep.Nursery", lambda *given: contextlib.nullcontext(bench.nursery))


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()
