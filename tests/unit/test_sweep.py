"""A sweep keeps each result the moment it is there, goes on after a broken one, and loses nothing when cut short."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from judging import LIMITS, bench, one_nursery, rms_norm, write_set

from fastkernels.adversarial.self_test import Result
from fastkernels.bench.run_folder import RunFolder
from fastkernels.bench.sweep import Progress, Sweep, plan_items, run_sweep, start_run
from fastkernels.capture.case import Case
from fastkernels.capture.store import CaseSet
from fastkernels.cli.kernels import _exit_code
from fastkernels.cli.self_test import self_test
from fastkernels.errors import (
    EXIT_JUDGE_ERROR,
    EXIT_NOT_PASSED,
    EXIT_OK,
    EnvironmentProblem,
    RunFolderError,
    UsageError,
)
from fastkernels.harness.judge import Judge, JudgeConfig
from fastkernels.harness.records import OpRecord
from fastkernels.harness.verdict import Verdict
from fastkernels.registry import find_ops, ops
from fastkernels.sets import folder_digest, resolve_set, source_digest

__all__ = ["bench", "one_nursery"]

CONFIG = JudgeConfig(num_shapes=1, is_timed=False)
SILU = """
from torch import nn

class SiluAndMul(nn.Module):
    def forward(self, x):
        gate, up = x.float().chunk(2, -1)
        return (nn.functional.silu(gate) * up).to(x.dtype)
"""
STORE = "import os\nfrom torch import nn\n\nclass StoreKVCache(nn.Module):\n    forward = None\n\nos._exit(9)\n"
RIGHT = rms_norm("return self.right(x, residual)")


def record(op: str = "rms_norm", implementation: str = "mine", **values: Any) -> OpRecord:
    base = {"level": 1, "source_path": "", "source_sha256": "0" * 64, "device": "cpu", "verdict": "PASSED"}
    return OpRecord(op=op, implementation=implementation, **{**base, **values})  # type: ignore[arg-type]


def a_set(folder: Path) -> Path:
    write_set(folder, "rms_norm", RIGHT)
    write_set(folder, "silu_and_mul", SILU)
    return write_set(folder, "store_kvcache", STORE)


def sweep_of(folder: Path, config: JudgeConfig = CONFIG, cases: CaseSet | None = None) -> Sweep:
    return Sweep(plan_items(list(ops().values()), [resolve_set(folder)]), config, cases, LIMITS, {"device": "cpu"})


class Heard:
    """What a sweep told while it ran."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.stages: list[tuple[str, float]] = []
        self.progress = Progress(
            lambda item, number, total: self.begun.append(f"{item[0].name} {number + 1}/{total}"),
            lambda text, share: self.stages.append((text, share)),
            lambda r: self.ended.append(f"{r.op} {r.verdict}"),
        )


def _children() -> set[int]:
    return {process.pid for process in psutil.Process().children()}


def test_plan_takes_what_the_sets_offer_lowest_level_first(tmp_path: Path) -> None:
    candidates = a_set(tmp_path / "mine")
    write_set(candidates, "llama_mlp", "class LlamaMLP: pass")
    items = plan_items(list(ops().values()), [resolve_set(candidates), resolve_set("torch_native")])
    assert [entry.level for entry, _ in items] == sorted(entry.level for entry, _ in items)
    assert (items[-1][0].name, items[-1][1].name) == ("llama_mlp", "mine")
    assert {s.name for entry, s in items if entry.name == "rms_norm"} == {"mine", "torch_native"}
    assert [e.name for e, _ in plan_items(find_ops("silu_and_mul"), [resolve_set(candidates)])] == ["silu_and_mul"]


def test_plan_of_nothing_says_how_to_write_one(tmp_path: Path) -> None:
    candidates = write_set(tmp_path / "mine", "rms_norm", RIGHT)
    with pytest.raises(UsageError, match="fastkernels stubs --target OP"):
        plan_items(find_ops("linear"), [resolve_set(candidates)])


def test_sweep_judges_all_and_resumes_what_is_missing_or_changed(tmp_path: Path) -> None:
    """One file ends its process, which is its own verdict; then only what changed is judged again, a helper too."""
    mine = write_set(
        a_set(tmp_path / "mine"), "silu_and_mul", "from ._scale import SCALE\n" + SILU.replace("* up", "* up * SCALE")
    )
    (mine / "L1" / "_scale.py").write_text("SCALE = 1.0\n")
    sweep, heard, before = sweep_of(mine), Heard(), _children()
    folder = start_run(sweep, tmp_path / "run")
    results = run_sweep(sweep, folder, heard.progress)
    assert heard.begun == ["rms_norm 1/3", "silu_and_mul 2/3", "store_kvcache 3/3"]
    assert heard.ended == ["rms_norm PASSED", "silu_and_mul PASSED", "store_kvcache RUNTIME_ERROR"]
    told = heard.stages[: next(i for i, stage in enumerate(heard.stages) if i and stage[0] == "wrong answers")]
    assert [share for _, share in told] == [0.0, 0.0, 0.0, 0.5, 0.5]  # of rms_norm: two ways to build it, a shape each
    assert told[1][0] == "correctness 1/2, 1 shapes"
    assert told[2][0].startswith("correctness 1/2, x[")
    assert results["status"] == "finished"
    assert [r["op"] for r in results["ops"]] == ["rms_norm", "silu_and_mul", "store_kvcache"]
    assert results["ceilings"]["copy_bytes_per_s"] > 1e8
    assert json.loads((folder.path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert {p.name for p in (folder.path / "ops").iterdir()} == {f"mine--{r['op']}.json" for r in results["ops"]}
    assert not list(folder.path.rglob("*.partial"))
    assert _children() == before

    heard = Heard()
    assert run_sweep(sweep, RunFolder(folder.path), heard.progress)["ops"] == results["ops"]
    assert heard.ended == []
    (mine / "L1" / "_scale.py").write_text("SCALE = 1.1\n")
    (folder.path / "ops" / "mine--rms_norm.json").unlink()
    again = run_sweep(sweep_of(tmp_path / "mine"), RunFolder(folder.path), heard.progress)
    assert heard.ended == ["rms_norm PASSED", "silu_and_mul INCORRECT_NUMERICAL"]
    assert len({r["set_sha256"] for r in again["ops"]}) == 1
    assert [r["verdict"] for r in again["ops"]] == ["PASSED", "INCORRECT_NUMERICAL", "RUNTIME_ERROR"]


class _JudgeOfAll:
    """Passes everything, without a worker."""

    ceilings = None

    def __init__(self, *given: Any) -> None: ...

    def source_sha256(self, entry: Any, implementations: Any) -> str:
        return source_digest(implementations, entry)

    def judge(self, entry: Any, implementations: Any, cases: Any) -> OpRecord:
        made = record(entry.name, implementations.name)
        made.source_sha256 = self.source_sha256(entry, implementations)
        return made


def test_op_is_judged_again_when_a_helper_that_it_names_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else of the set changed: all that is kept holds for the set as it is."""
    monkeypatch.setattr("fastkernels.bench.sweep.Nursery", lambda *given: contextlib.nullcontext())
    monkeypatch.setattr("fastkernels.bench.sweep.Judge", _JudgeOfAll)
    sets = [write_set(tmp_path / name, "rms_norm", "from ._helper import A\n" + RIGHT) for name in ("mine", "other")]
    (sets[1] / "L1" / "_helper.py").write_text("A = 1")
    folder = start_run(sweep_of(sets[1]), tmp_path / "run")
    run_sweep(sweep_of(sets[1]), folder, Progress())
    for name, text, ended in (
        ("_helper", "A = 1", 1),
        ("_helper", "A = 1", 0),
        ("_helper", "A = 2", 1),
        ("_unused", "A = 1", 0),
    ):
        (sets[0] / "L1" / f"{name}.py").write_text(text)
        heard = Heard()
        results = run_sweep(sweep_of(sets[0]), folder, heard.progress)
        assert heard.ended == ["rms_norm PASSED"] * ended
        told = {s["name"]: s["sha256"] for s in results["sets"]}
        assert told == {r["implementation"]: r["set_sha256"] for r in results["ops"]}
        assert told.keys() == {"mine", "other"}


class _JudgeWhile(_JudgeOfAll):
    """Something happens while it judges an op."""

    happens: dict[str, Callable[[], object]]

    def judge(self, entry: Any, implementations: Any, cases: Any) -> OpRecord:
        made = super().judge(entry, implementations, cases)
        self.happens.pop(entry.name, lambda: None)()
        return made


def test_a_set_that_changes_on_the_way_is_not_recorded_as_one_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changed is not named by the op that was judged meanwhile; what is named makes its judgement none."""
    monkeypatch.setattr("fastkernels.bench.sweep.Nursery", lambda *given: contextlib.nullcontext())
    monkeypatch.setattr("fastkernels.bench.sweep.Judge", _JudgeWhile)
    mine = write_set(write_set(tmp_path / "mine", "rms_norm", RIGHT), "silu_and_mul", SILU)
    files = {name: mine / "L1" / f"{name}.py" for name in ("rms_norm", "silu_and_mul")}

    def judged(**happens: Callable[[], object]) -> tuple[list[str], set[str]]:
        _JudgeWhile.happens = happens
        results = run_sweep(sweep_of(mine), folder, Progress())
        ends = {s["sha256"] for s in results["sets"]}
        assert ends == {folder_digest(mine)}
        return [r["verdict"] for r in results["ops"]], {r["set_sha256"] for r in results["ops"]} | ends

    folder = start_run(sweep_of(mine), tmp_path / "run")
    verdicts, states = judged(rms_norm=lambda: files["silu_and_mul"].write_text(SILU + "# other\n"))
    assert (verdicts, len(states)) == (["PASSED", "PASSED"], 2)
    assert [len(found) for found in (judged()[1], judged()[1])] == [1, 1]
    files["silu_and_mul"].write_text(SILU)
    verdicts, states = judged(silu_and_mul=lambda: (mine / "L1" / "_notes.py").write_text("# beside it, at the end\n"))
    assert (verdicts, len(states)) == (["PASSED", "PASSED"], 2)
    files["silu_and_mul"].write_text(SILU + "# again\n")
    verdicts, _ = judged(silu_and_mul=lambda: files["silu_and_mul"].write_text(SILU))
    assert verdicts == ["PASSED", "JUDGE_ERROR"]
    assert "silu_and_mul changed while it was judged" in folder.records()[1]["message"]
    verdicts, states = judged()
    assert (verdicts, len(states)) == (["PASSED", "PASSED"], 1)


def _failing_on_silu(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    real = Judge._judge

    def judge(self: Judge, entry: Any, *rest: Any) -> None:
        if entry.name == "silu_and_mul":
            raise error
        real(self, entry, *rest)

    monkeypatch.setattr(Judge, "_judge", judge)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), EnvironmentProblem("no room")], ids=repr
)
def test_sweep_that_is_cut_short_keeps_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    _failing_on_silu(monkeypatch, error)
    before, sweep = _children(), sweep_of(a_set(tmp_path / "mine"))
    folder = start_run(sweep, tmp_path / "run")
    with pytest.raises(type(error)):
        run_sweep(sweep, folder, Progress())
    results = RunFolder(tmp_path / "run").results()
    assert results["status"] == "interrupted"
    assert [(r["op"], r["verdict"]) for r in results["ops"]] == [("rms_norm", "PASSED")]
    assert _children() == before


@pytest.mark.usefixtures("one_nursery")
def test_fault_of_the_judge_is_that_ops_record_and_the_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, heard = sweep_of(a_set(tmp_path / "mine")), Heard()
    with monkeypatch.context() as patch:
        _failing_on_silu(patch, ZeroDivisionError("a fault of the judge"))
        results = run_sweep(sweep, start_run(sweep, tmp_path / "run"), heard.progress)
    assert heard.ended == ["rms_norm PASSED", "silu_and_mul JUDGE_ERROR", "store_kvcache RUNTIME_ERROR"]
    assert results["status"] == "finished"
    message = results["ops"][1]["message"]
    assert message.startswith("Traceback (most recent call last)")
    assert message.strip().endswith("ZeroDivisionError: a fault of the judge")
    heard = Heard()
    run_sweep(sweep, RunFolder(tmp_path / "run"), heard.progress)  # resumed: what the judge failed on is tried again
    assert heard.ended == ["silu_and_mul PASSED"]


@pytest.mark.usefixtures("one_nursery")
def test_op_that_the_workload_never_calls_does_not_pass(tmp_path: Path) -> None:
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    case = Case("silu_and_mul", {}, {"x": x}, {}, torch.float32)
    candidates = write_set(tmp_path / "mine", "rms_norm", RIGHT)
    write_set(candidates, "silu_and_mul", SILU)
    sweep = sweep_of(candidates, cases=CaseSet([case], model="tiny", workload="demo"))
    results = run_sweep(sweep, start_run(sweep, tmp_path / "run"), Progress())
    verdicts = {r["op"]: r["verdict"] for r in results["ops"]}
    assert verdicts == {"rms_norm": Verdict.NEVER_CALLED, "silu_and_mul": Verdict.PASSED}
    assert "tiny on demo never calls rms_norm" in results["ops"][0]["message"]
    assert [len(hashes) for hashes in results["case_hashes"].values()] == [1]
    assert "captured" in {c["family"] for c in results["ops"][1]["cases"]}


def test_runs_that_begin_in_one_second_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTKERNELS_HOME", str(tmp_path / "runs"))
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda number: RunFolder.create("kernels", {"number": number}, {}), range(64)))
    assert len({folder.path for folder in folders}) == 64
    assert [folder.header()["request"]["number"] for folder in folders] == list(range(64))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_sweep_on_a_device_that_is_not_there_is_an_environment_problem(tmp_path: Path) -> None:
    sweep = sweep_of(a_set(tmp_path / "mine"), JudgeConfig(device="cuda"))
    folder = RunFolder.create("kernels", {}, {}, tmp_path / "run")
    with pytest.raises(EnvironmentProblem, match="no GPU is visible"):
        run_sweep(sweep, folder, Progress())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_self_test_on_a_device_that_is_not_there_says_so_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="no GPU is visible"):
        self_test("cuda", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_fault_of_the_judge_has_an_exit_code_and_one_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    message = "Traceback (most recent call last):\n  File x\nZeroDivisionError: a fault of the judge\n"
    records = [record(verdict=verdict) for verdict in ("PASSED", "TIMEOUT")]
    for count, code in ((1, EXIT_OK), (2, EXIT_NOT_PASSED)):
        assert _exit_code({"ops": [r.to_json() for r in records[:count]]}) == code
    records.append(record("linear", verdict="JUDGE_ERROR", message=message))
    assert _exit_code({"ops": [r.to_json() for r in records]}) == EXIT_JUDGE_ERROR
    told = capsys.readouterr().err
    assert told == "error: The judge itself failed on linear (mine): ZeroDivisionError: a fault of the judge\n"


def test_run_folder_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up in the middle of a file leaves the file from before and no part of the new one."""
    folder = RunFolder.create("kernels", {}, {}, tmp_path / "run")
    folder.add(record(message="before"))

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folder.add(record(message="after"))
    with pytest.raises(OSError, match="No space left"):
        folder.finish(status="finished")
    assert [r["message"] for r in folder.records()] == ["before"]
    assert {p.name for p in folder.path.rglob("*")} == {"run.json", "ops", "mine--rms_norm.json"}
    assert folder.results()["status"] == "unfinished"


def test_run_folder_reads_what_it_wrote(tmp_path: Path) -> None:
    folder = RunFolder.create("kernels", {"device": "cpu"}, {"cpu": "x"}, tmp_path / "run")
    for op, level in (("llama_mlp", 2), ("rms_norm", 1), ("linear", 1)):
        folder.add(record(op, level=level))
    assert [r["op"] for r in folder.records()] == ["linear", "rms_norm", "llama_mlp"]
    results = folder.finish(status="finished", seconds=1.5)
    assert RunFolder(folder.path).results() == results
    assert (results["kind"], results["run_id"], results["request"]) == ("kernels", "run", {"device": "cpu"})


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "run.json is missing"), ("{", "cut off or altered"), ("[1]", "does not hold a JSON object")],
)
def test_run_folder_that_is_none_is_named(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunFolderError, match=says):
        RunFolder(tmp_path).header()


def test_run_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = RunFolder.create("kernels", {}, {}, tmp_path / "run")
    folder.finish(status="finished")
    for name in ("run.json", "results.json"):
        data = json.loads((folder.path / name).read_text())
        (folder.path / name).write_text(json.dumps({**data, "schema_version": 999}))
    for read in (folder.header, folder.results):
        with pytest.raises(RunFolderError, match="has schema version 999; this program reads"):
            read()


def test_run_folders_of_one_second_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTKERNELS_HOME", str(tmp_path))
    paths = {RunFolder.create("kernels", {}, {}).path for _ in range(3)}
    assert len(paths) == 3
    assert all(path.parent == tmp_path for path in paths)


def test_each_result_of_the_self_test_is_kept_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def results_on_disk() -> list[str]:
        return [result["name"] for result in json.loads((tmp_path / "self_test.json").read_text())["results"]]

    def judged(device: str, on_result: Any, names: Any) -> None:
        for number, name in enumerate(("one", "two"), 1):
            on_result(Result(name, "family", "silu", True, ("CHEATING",), "CHEATING", True, "", 0.1), number, 2)
            seen.append(results_on_disk())

    seen: list[list[str]] = []
    monkeypatch.setattr("fastkernels.cli.self_test.run", judged)
    assert self_test("cpu", tmp_path) == EXIT_OK
    assert seen == [["one"], ["one", "two"]]


@pytest.mark.usefixtures("one_nursery")
def test_bad_files_are_import_errors_and_the_sweep_goes_on(tmp_path: Path) -> None:
    """One nested too deeply for Python's parser, one that is gone once the sweep has begun."""
    folder = write_set(tmp_path / "mine", "silu_and_mul", SILU)
    write_set(folder, "rms_norm", "x = " + "-" * 200_000 + "1")
    write_set(folder, "linear", "y = " + "-" * 2_000 + "1")
    write_set(folder, "store_kvcache", STORE)
    items = plan_items(list(ops().values()), [resolve_set(folder)])
    assert [entry.name for entry, _ in items] == ["linear", "rms_norm", "silu_and_mul", "store_kvcache"]
    (folder / "L1" / "store_kvcache.py").unlink()
    sweep = Sweep(items, CONFIG, limits=LIMITS)
    results = run_sweep(sweep, start_run(sweep, tmp_path / "run"), Progress())
    found = {r["op"]: (r["verdict"], r["message"]) for r in results["ops"]}
    assert found["silu_and_mul"] == ("PASSED", "")
    assert all(found[name][0] == "IMPORT_ERROR" for name in ("rms_norm", "linear", "store_kvcache")), found
    assert "nested too deeply" in found["rms_norm"][1]
    assert "store_kvcache" in found["store_kvcache"][1]
    assert max(len(message) for _, message in found.values()) < 3000
