"""benchmarks/op_kernels.py: rehearsed on a CPU, at the published sizes on "meta", and its turns without a GPU."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fastkernels.env import triton_interpreted
from fastkernels.op import Op

pytest.importorskip("triton")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MEASURED = {
    *("FusedExperts", "TopKSoftmax", "CausalConv1d", "CausalConv1dUpdate", "MambaChunkScan", "SelectiveStateUpdate"),
    *("ChunkGatedDeltaRule", "GDNRecurrence", "FlashAttnPrefill", "DenseAttention", "CrossAttention", "GroupNorm"),
    *("ConvBNSiLU", "EmbeddingBag", "SpMM", "RasterizeGaussians", "MRotaryEmbedding", "LayerNorm", "FlashAttnVarlen"),
    *("Addcmul", "BiasAddResidual"),
}


@pytest.fixture
def op_kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in [name for name in sys.modules if name.startswith(("op_kernels", "op_groups", "kernel_timing"))]:
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module("op_kernels")


def check(report: dict[str, Any], most: float) -> None:
    assert "error" not in report, report["error"]
    for row in report["rows"]:
        assert not set(row["lacking"]) & {"ours", "definition", "torch_native"}, row
        assert row["num_bytes"] > 0
        assert all(us > 0 for us in row["microseconds"].values())
        assert set(row["differs"]) == set(row["microseconds"]) - {"ours"}
        assert all(by < most for by in row["differs"].values()), row


def test_a_rehearsal_measures_every_kernel_that_matters_and_all_paths_agree(
    op_kernels: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert op_kernels.main(["--device", "cpu", "--out", str(tmp_path)]) == 0
    found = set()
    for name in op_kernels.GROUPS:
        report = json.loads((tmp_path / f"{name}.json").read_text())
        check(report, 1e-4)
        found |= {row["op"] for row in report["rows"]}
        assert report["environment"]["device"] == "cpu"
    assert found >= MEASURED
    shown = capsys.readouterr().out
    assert "unlike" not in shown
    assert "torch._grouped_mm" in shown


@pytest.mark.slow
def test_the_kernels_of_a_rehearsal_run_interpreted(tmp_path: Path) -> None:
    groups = ["attention", "experts"]
    words = [sys.executable, str(BENCHMARKS / "op_kernels.py"), *groups, "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(
        words, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in groups:
        check(json.loads((tmp_path / f"{name}.json").read_text()), 1e-3)


@pytest.mark.skipif(triton_interpreted(), reason="names what would be compiled, which TRITON_INTERPRET=1 does not")
def test_production_launches_its_kernels_at_the_published_sizes(op_kernels: Any) -> None:
    from fastkernels.kernels.ahead import TensorsOnGpu, naming_for

    bench_module = importlib.import_module("op_groups.bench")
    head_sizes, shapes = set(), []

    class Recorder(bench_module.Bench):  # type: ignore[misc, name-defined]
        def row(self, model: str, shape: str, op: Op, make: Callable[[], Any], *_: Any, **given: Any) -> Any:
            arguments = make()
            with bench_module.set_forward_context(given.get("context")), TensorsOnGpu():
                op(*arguments)
            if type(op).__name__ == "FlashAttnPrefill":
                head_sizes.add(op.head_size)
            shapes.append(f"{type(op).__name__} {model} {shape}")
            return bench_module.Row(type(op).__name__, model, shape, "")

    bench = Recorder("meta", None)
    assert not bench.is_rehearsal
    with naming_for() as names:
        for group in ("attention", "decode", "experts", "gates", "norms", "states", "vision"):
            assert list(importlib.import_module(f"op_groups.{group}").rows(bench))
    assert head_sizes == {64, 72, 80, 128}
    assert any(name.startswith("mxfp4_moe.") for name in names)
    assert any(name.startswith("dense_attention.") for name in names)
    for expected in (
        "FusedExperts Mixtral-8x7B 4096 x 4096, 2 of 8 experts",
        "TopKSoftmax Qwen3-Next-80B 16 x 512, 10 of them",
        "MambaChunkScan Mamba-Codestral-7B 4 x 2048 x 128 x 64, states of 128",
        "ChunkGatedDeltaRule Qwen3-Next-80B 4 x 2048 x 32, 128 x 128",
        "GroupNorm SDXL 2 x 320 x 128 x 128, 32 groups, channels last",
        "GroupNorm SDXL decoder 1 x 512 x 256 x 256, 32 groups, planes",
        "GroupNorm SDXL 2 x 640 x 64 x 64, channels last, 32 groups, shifted",
        "BiasAddResidual SDXL 2 x 1280 x 32 x 32, channels last",
        "ConvBNSiLU YOLOv10-N 8 x 3 to 16, 640 x 640 by 2",
        "CrossAttention Whisper-large-v3 64 x 1 to 1500, 20 heads of 64",
        "DenseAttention SDXL 2 x 4096 to 77, 10 heads of 64",
        "DenseAttention Pi0 4 x 51 to 867, 8 heads of 256 on 1",
        "DenseAttention Pi0 1 x 816 to 816, 8 heads of 256 on 1",
        "MRotaryEmbedding Qwen2-VL-7B 8192 x (28 + 4) x 128",
    ):
        assert expected in shapes


def test_a_path_that_fails_leaves_the_others_and_a_group_that_fails_its_rows(
    op_kernels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gates = importlib.import_module("op_groups.gates")
    is_broken = False

    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory\nand more")

    def rows(bench: Any) -> Any:
        op = bench.build(gates.L2Norm, {}, torch.float32)
        yield bench.row("one", "4", op, lambda: (bench.randn(4),), {"broken": fails, "wrong": lambda x: 2 * op(x)})
        op.forward = fails
        yield bench.row("two", "4", op, lambda: (bench.randn(4),))
        if is_broken:
            fails()

    monkeypatch.setattr(gates, "rows", rows)
    out = tmp_path / "one.json"
    for is_broken in (False, True):
        assert op_kernels.main(["gates", "--device", "cpu", "--out", str(out)]) == 1
        report = json.loads(out.read_text())
        first, second = report["rows"]
        assert set(first["microseconds"]) == {"ours", "wrong", "definition"}
        assert first["lacking"] == {"broken": "OutOfMemoryError: CUDA out of memory"}
        assert first["differs"]["wrong"] == pytest.approx(1.0)
        assert second["lacking"] == {"ours": "OutOfMemoryError: CUDA out of memory"}
        assert report.get("error", "").startswith("OutOfMemoryError" if is_broken else "")
    shown = capsys.readouterr().out
    assert "wrong unlike by 1" in shown
    assert "failed" in shown


def test_a_group_ends_at_its_time_and_says_so(op_kernels: Any, tmp_path: Path) -> None:
    assert op_kernels.main(["gates", "--device", "cpu", "--seconds", "0", "--out", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "gates.json").read_text())
    assert len(report["rows"]) == 1
    assert report["error"].startswith("--seconds 0 were over")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rasters"], "there is no group 'rasters'; there are attention, decode,"),
        (["gates", "states", "--out", "one.json"], "--out one.json is one file; 2 groups need a folder"),
    ],
)
def test_what_cannot_be_measured_is_said(
    op_kernels: Any, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        op_kernels.main(["--device", "cpu", *words])
    assert says in capsys.readouterr().err


class _Clock:
    """Stands in for torch.cuda: calls say how long they take, and whether the host waits in them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ms, self.is_strict, self.is_capturing, self.taken = 0.0, False, False, []
        clock = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.at = 0.0

            def record(self) -> None:
                self.at = clock.ms

            def synchronize(self) -> None: ...

            def elapsed_time(self, other: Any) -> float:
                return other.at - self.at

        class Graph:
            def __init__(self) -> None:
                self.calls: list[Callable[[], object]] = []

            def replay(self) -> None:
                for call in self.calls:
                    call()

        @contextmanager
        def capture(graph: Any) -> Any:
            clock.is_capturing, clock.captured = True, graph.calls
            yield
            clock.is_capturing = False

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", capture)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(
            torch.cuda, "set_sync_debug_mode", lambda mode: setattr(clock, "is_strict", mode == "error")
        )

    def set_strictness(self, mode: str) -> None:
        self.is_strict = mode == "error"

    def call(self, name: str, ms: float, waits: bool = False) -> Callable[[], object]:
        def work() -> None:
            if waits and (self.is_strict or self.is_capturing):
                raise RuntimeError("called a synchronizing CUDA operation")
            if self.is_capturing:
                self.captured.append(work)
            else:
                self.ms += ms
                self.taken.append(name)

        return work


def test_paths_take_turns_with_graphs_where_the_host_does_not_wait(
    op_kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = importlib.import_module("op_groups.turns")
    clock, failures = _Clock(monkeypatch), {}

    def fails() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    paths = {
        "ours": [clock.call("ours", 1.0)] * 5,
        "waits": [clock.call("waits", 2.0, waits=True)] * 5,
        "slow": [clock.call("slow", 500.0)] * 5,
        "fails": [fails] * 5,
    }
    times, without_graph = turns.take_turns(paths, failures.__setitem__)
    assert times == {"ours": 1000.0, "waits": 2000.0, "slow": 500_000.0}
    assert without_graph == ["waits"]
    assert list(failures) == ["fails"]
    turned = [name for name, before in zip(clock.taken[1:], clock.taken, strict=False) if name != before]
    first = turned.index("slow", turned.index("waits"))  # behind what was called to prepare
    assert turned[first : first + 6] == ["slow", "waits", "ours", "waits", "slow", "waits"]
    assert clock.taken.count("slow") == 2 + 2 + 1 + turns._LEAST_TURNS  # compiled, timed, asked, and one set a turn
