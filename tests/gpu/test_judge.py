"""The judge with workers on a GPU: what only a device can show, and times by device events."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from fastkernels.capture.case import Case
from fastkernels.harness.judge import Judge, JudgeConfig
from fastkernels.harness.records import OpRecord
from fastkernels.harness.timing import Protocol
from fastkernels.harness.verdict import Verdict
from fastkernels.harness.workers import Limits, Nursery
from fastkernels.registry import ops
from fastkernels.sets import resolve_set

pytestmark = pytest.mark.gpu

CHECK_ONLY = JudgeConfig(device="cuda", dtypes=(torch.bfloat16,), num_shapes=2, is_timed=False)
TIMED = JudgeConfig(
    device="cuda", dtypes=(torch.bfloat16,), num_shapes=1, num_timed=1, protocol=Protocol(2, num_blocks=8)
)
RMS_NORM = """
import time
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


class Bench:
    def __init__(self, nursery: Nursery, folder: Path) -> None:
        self.nursery, self.folder, self.num_sets = nursery, folder, 0
        self.judges: dict[JudgeConfig, Judge] = {}

    def judge(self, body: str, config: JudgeConfig = CHECK_ONLY, cases: tuple[Case, ...] = ()) -> OpRecord:
        """rms_norm with `body` as its forward; nothing of the worker may be left after it."""
        self.num_sets += 1
        file = self.folder / f"set{self.num_sets}" / "L1" / "rms_norm.py"
        file.parent.mkdir(parents=True)
        file.write_text(RMS_NORM.replace("{body}", textwrap.indent(textwrap.dedent(body).strip("\n"), " " * 8)))
        if config not in self.judges:
            self.judges[config] = Judge(config, self.nursery)
        record = self.judges[config].judge(ops()["rms_norm"], resolve_set(file.parents[1]), cases)
        self.assert_clean()
        return record

    def assert_clean(self) -> None:
        nursery = psutil.Process(self.nursery._process.pid)
        deadline = time.monotonic() + 5
        while nursery.children(recursive=True) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [p for p in nursery.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
        assert not left


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    limits = Limits(load_seconds=120, call_seconds=20, first_call_factor=1.0)
    with Nursery("cuda", limits, ("fastkernels.kernels.backend",)) as nursery:
        yield Bench(nursery, tmp_path_factory.mktemp("sets"))


def large_case() -> Case:
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(4096, 4096, generator=generator).bfloat16() for _ in range(2))
    inputs = {"x": x, "residual": residual}
    return Case("rms_norm", {"hidden_size": 4096}, inputs, {"weight": torch.ones(4096).bfloat16()}, torch.bfloat16)


def test_right_candidate_passes(bench: Bench) -> None:
    record = bench.judge("return self.right(x, residual)")
    assert record.verdict == Verdict.PASSED, record.message
    assert record.device == "cuda"
    assert record.num_calls == len(record.cases) > 10


WRONG = {
    "values": ("y, h = self.right(x, residual); return y * 1.05, h", Verdict.INCORRECT_NUMERICAL, ""),
    "dtype": ("return tuple(y.float() for y in self.right(x, residual))", Verdict.INCORRECT_DTYPE, "float32"),
    "on the host": (
        "return tuple(y.cpu() for y in self.right(x, residual))",
        Verdict.CHEATING,
        "is on cpu, not on cuda",
    ),
    "input written to": (
        "answer = self.right(x, residual); residual.zero_(); return answer",
        Verdict.UNDECLARED_MUTATION,
        "residual was written to",
    ),
    "written past the end": (
        """
        answer, end = self.right(x, residual), residual.numel()
        torch.as_strided(residual, (end + 1,), (1,))[end] = 1.0
        return answer
        """,
        Verdict.UNDECLARED_MUTATION,
        "Memory beyond residual was written to",
    ),
    "exception": ("raise KeyError('no kernel for this shape')", Verdict.RUNTIME_ERROR, "no kernel for this shape"),
    "illegal address": (
        "torch.ones(4, device='cuda')[torch.full((4,), 1 << 40, device='cuda')].sum().item()",
        Verdict.RUNTIME_ERROR,
        "",
    ),
    "endless kernel": (
        "torch.cuda._sleep(1 << 40); return self.right(x, residual)",
        Verdict.TIMEOUT,
        "no answer within",
    ),
}


@pytest.mark.parametrize("way", WRONG)
def test_wrong_answer_has_its_verdict_and_says_what(bench: Bench, way: str) -> None:
    body, verdict, text = WRONG[way]
    record = bench.judge(body)
    assert record.verdict == verdict, record.message
    assert text in record.message


def test_judge_goes_on_after_a_broken_context(bench: Bench) -> None:
    bench.judge(WRONG["illegal address"][0])
    assert bench.judge("return self.right(x, residual)").verdict == Verdict.PASSED


SIDE_STREAM = """
stream = self.__dict__.setdefault("stream", torch.cuda.Stream())
stream.wait_stream(torch.cuda.current_stream())
y, h = torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(residual)
with torch.cuda.stream(stream):
    torch.cuda._sleep(20_000_000)
    for target, value in zip((y, h), self.right(x, residual)):
        target.copy_(value)
JOIN
return y, h
"""


def test_side_stream_that_does_not_join_is_rejected(bench: Bench) -> None:
    """Ten milliseconds of work beside the stream that is timed: a wrong answer, or time that nobody paid for."""
    record = bench.judge(SIDE_STREAM.replace("JOIN", ""), TIMED, (large_case(),))
    assert record.verdict in (Verdict.CHEATING, Verdict.INCORRECT_NUMERICAL), record.message


def test_side_stream_that_joins_pays_for_its_time(bench: Bench) -> None:
    record = bench.judge(
        SIDE_STREAM.replace("JOIN", "torch.cuda.current_stream().wait_stream(stream)"), TIMED, (large_case(),)
    )
    assert record.verdict == Verdict.PASSED, record.message
    assert record.timings[0].speed == "LOSS"
    assert record.timings[0].candidate_us > 5000


def test_time_is_by_device_events_with_a_graph_column(bench: Bench) -> None:
    record = bench.judge("return self.right(x, residual)", TIMED, (large_case(),))
    (timing,) = record.timings
    assert record.verdict == Verdict.PASSED, record.message
    assert timing.clock == "device events"
    assert timing.speed == "LOSS"  # seven passes over memory instead of one
    assert timing.candidate_us > 1.5 * timing.baseline_us > 0
    assert timing.graph_baseline_us is not None
    assert timing.graph_candidate_us is not None
    assert 0 < timing.graph_baseline_us < timing.graph_candidate_us
    assert timing.warm_candidate_us is not None
    assert 0.2 < timing.baseline_roofline_share < 1.2
    assert timing.floor_us < timing.baseline_us
    samples = [s for s in timing.samples if s.side == "candidate"]
    assert all(claim >= device for s in samples for claim, device in zip(s.claim_ns, s.device_ns, strict=True))
    assert all(s.clocks["sm_mhz"] > 0 for s in samples)


def test_the_kernels_that_a_call_launched_are_recorded_as_its_own_word(bench: Bench) -> None:
    body = """
    from fastkernels.kernels.rms_norm import add_rms_norm
    return add_rms_norm(x, residual, self.weight, self.eps)
    """
    record = bench.judge(body, CHECK_ONLY, (large_case(),))
    assert record.verdict == Verdict.PASSED, record.message
    assert any("rms_norm" in name for name in record.launched)
    assert not any("aten::" in name for name in record.launched)


def test_answers_are_checked_while_they_are_timed(bench: Bench) -> None:
    body = "y, h = self.right(x, residual)\nreturn (y, h) if self.num_calls <= 40 else (y * 1.05, h)"
    record = bench.judge(body, TIMED, (large_case(),))
    assert record.verdict == Verdict.INCORRECT_NUMERICAL
    assert all(case.verdict == Verdict.PASSED for case in record.cases)


def test_baseline_copy_ties(bench: Bench) -> None:
    body = """
    from fastkernels.kernels.rms_norm import add_rms_norm
    return add_rms_norm(x, residual, self.weight, self.eps)
    """
    record = bench.judge(body, TIMED, (large_case(),))
    assert record.verdict == Verdict.PASSED, record.message
    assert record.timings[0].speed == "TIE"
    assert 0.9 < record.timings[0].ratio < 1.1


def test_nursery_never_touches_the_gpu(bench: Bench) -> None:
    maps = Path(f"/proc/{bench.nursery._process.pid}/maps").read_text()
    assert "/dev/nvidia" not in maps
