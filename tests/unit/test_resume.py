"""A run goes on only where, with what and on what it began."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from judging import LIMITS, rms_norm, write_set

from fastkernels.bench.environment import environment
from fastkernels.bench.resume import refuse_other_machine
from fastkernels.bench.run_folder import RunFolder
from fastkernels.bench.sweep import Progress, Sweep, plan_items, resumed_run, run_sweep, start_run
from fastkernels.capture.case import Case
from fastkernels.capture.store import CaseSet
from fastkernels.errors import RunFolderError, UsageError
from fastkernels.harness.judge import JudgeConfig
from fastkernels.harness.measurements import tolerances_digest
from fastkernels.harness.records import OpRecord
from fastkernels.registry import find_ops
from fastkernels.sets import resolve_set, source_digest

Json = dict[str, Any]


@pytest.fixture(scope="module")
def here() -> Json:
    return environment("cpu")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"cpu": "Other 1", "num_cores": 3},
            r"run ran on Other 1 with 3 cores; this machine is .* a new run here",
        ),
        ({"gpu": {"name": "NVIDIA H200"}}, "run ran on NVIDIA H200; this machine is"),
        ({"fastkernels": "0.0.9"}, r"ran with fastkernels 0\.0\.9.*; here is"),
        ({"commit": "0123456789ab"}, "at 0123456789ab; here is"),
        ({"packages": {"torch": "1.0"}}, r"ran with torch 1\.0; here is .* go on with it under torch 1\.0"),
    ],
)
def test_other_hardware_and_versions_are_refused_naming_both(here: Json, change: Json, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        refuse_other_machine(Path("run"), {**here, **change}, here)


def test_the_same_machine_goes_on_with_files_edited_or_not(here: Json) -> None:
    commit = "0123456789ab"
    refuse_other_machine(Path("run"), {**here, "commit": commit}, {**here, "commit": f"{commit}+"})
    with pytest.raises(RunFolderError, match="does not say what machine"):
        refuse_other_machine(Path("run"), {}, here)


class _JudgeOfAll:
    """Passes everything, without a worker."""

    ceilings = None

    def __init__(self, *given: Any) -> None: ...

    def source_sha256(self, entry: Any, implementations: Any) -> str:
        return source_digest(implementations, entry)

    def judge(self, entry: Any, implementations: Any, cases: Any) -> OpRecord:
        source = self.source_sha256(entry, implementations)
        return OpRecord(entry.name, entry.level, implementations.name, "", source, "cpu", "PASSED")


def cases_of(ops: tuple[str, ...], seed: int) -> CaseSet:
    generator = torch.Generator().manual_seed(seed)
    return CaseSet([Case(op, {}, {"x": torch.randn(3, 8, generator=generator)}, {}, torch.float32) for op in ops])


@pytest.fixture
def sweep_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Sweep]:
    monkeypatch.setattr("fastkernels.bench.sweep.Nursery", lambda *given: contextlib.nullcontext())
    monkeypatch.setattr("fastkernels.bench.sweep.Judge", _JudgeOfAll)
    mine = write_set(tmp_path / "mine", "rms_norm", rms_norm("return self.right(x, residual)"))
    write_set(mine, "silu_and_mul", "class SiluAndMul: pass")
    both = ("rms_norm", "silu_and_mul")

    def sweep(target: str, seed: int) -> Sweep:
        items = plan_items(find_ops(target), [resolve_set(mine)])
        request = {"device": "cpu", "cases": "cases"}
        return Sweep(items, JudgeConfig(is_timed=False), cases_of(both, seed), LIMITS, request)

    return sweep


def test_a_run_does_not_go_on_with_other_cases_of_the_same_path(
    tmp_path: Path, sweep_over: Callable[[str, int], Sweep]
) -> None:
    sweep = sweep_over("rms_norm", 0)
    run_sweep(sweep, start_run(sweep, tmp_path / "run"), Progress())
    with pytest.raises(UsageError, match=r"judged on a case set of SHA-256 .* --cases cases holds one of .* now"):
        resumed_run(sweep_over("rms_norm", 1), tmp_path / "run")
    again = run_sweep(
        sweep_over("silu_and_mul", 0), resumed_run(sweep_over("silu_and_mul", 0), tmp_path / "run"), Progress()
    )
    assert set(again["case_hashes"]) == {"rms_norm", "silu_and_mul"}


def test_a_run_does_not_go_on_by_other_tolerances(
    tmp_path: Path, sweep_over: Callable[[str, int], Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = sweep_over("rms_norm", 0)
    results = run_sweep(sweep, start_run(sweep, tmp_path / "run"), Progress())
    assert results["tolerances_sha256"] == tolerances_digest()
    resumed_run(sweep, tmp_path / "run")
    monkeypatch.setattr("fastkernels.bench.sweep.tolerances_digest", lambda: "ab" * 32)
    with pytest.raises(UsageError, match=r"judged by tolerances of SHA-256 .*; here they are abababababab"):
        resumed_run(sweep, tmp_path / "run")


def test_hashes_stay_those_of_the_cases_that_an_op_was_judged_on(
    tmp_path: Path, sweep_over: Callable[[str, int], Sweep]
) -> None:
    """Were a run folder handed on with other cases, its kept records keep theirs."""
    sweep = sweep_over("rms_norm", 0)
    first = run_sweep(sweep, start_run(sweep, tmp_path / "run"), Progress())
    again = run_sweep(sweep_over("rms_norm", 1), RunFolder(tmp_path / "run"), Progress())
    assert again["case_hashes"] == first["case_hashes"]
