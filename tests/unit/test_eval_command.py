"""`fastkernels eval`: run folders, going on with them, interruption, bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from eval_sets import DLRM, FASTER, SETS, hanging, hanging_set, write_manifest

from fastkernels.bench.environment import environment
from fastkernels.bench.eval.implementations import read_sets
from fastkernels.bench.eval.run import KIND, EvalRun, Watcher, not_passed, read_manifest, run_eval
from fastkernels.bench.eval.scenarios import EvalScenario, ScenarioSet, WorkloadPart
from fastkernels.bench.run_folder import RunFolder
from fastkernels.cli import main

SCENARIOS = """\
num_passes: 2
scenarios:
  - model: tiny-dlrmv2
    dtype: float32
    throughput: [{name: examples, num_requests: 16}]
    latency: [{name: examples, num_requests: 4}]
"""
MORE = """\
  - model: tiny-lightgcn
    dtype: float32
    throughput: [{name: examples, num_requests: 16}]
    latency: [{name: examples, num_requests: 4}]
"""
Json = dict[str, Any]


@pytest.fixture(autouse=True)
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = write_manifest(tmp_path / "manifest.json")
    monkeypatch.setattr("fastkernels.scoring.manifest.MANIFEST_PATH", path)
    monkeypatch.setenv("FASTKERNELS_HOME", str(tmp_path / "runs"))
    return path


@pytest.fixture
def scenarios(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SCENARIOS)
    return path


def evaluate(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = 0
    try:
        main(["eval", *map(str, words)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.slow
def test_a_run_leaves_items_results_and_a_report_and_goes_on_with_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scenarios: Path
) -> None:
    """A set that passes; then another one beside it, then the first with another text."""
    mine, run = tmp_path / "sets" / "mine", tmp_path / "run"
    shutil.copytree(SETS / "sound", mine)
    words = (scenarios, "--candidates", mine, "--device", "cpu", "--restarts", "4", "--out", run, "--no-track")
    code, out, err = evaluate(capsys, *words)
    assert code == 0, err
    assert out.index("deployable speedup") < out.index("MacroEval") < out.index("tiny-dlrmv2-float32")
    assert "1 of 1 (100 %)" in out
    assert (run / "report.html").is_file()
    results = json.loads((run / "results.json").read_text())
    assert (results["status"], results["scenario_set"], results["eval_schema_version"]) == ("finished", "mine", 1)
    assert {p["restart"] for p in results["items"][0]["passes"]} == {0, 1, 2, 3}
    assert results["scores"]["mine"]["deployable"]["validity"] == 1.0
    assert results["manifest"]["version"]

    item = run / "items" / "tiny-dlrmv2-float32--mine.json"
    first = item.read_text()
    sets = ("--candidates", mine, "--candidates", FASTER)
    code, _, err = evaluate(capsys, "--resume", run, *sets, "--no-track", "--json")
    assert code == 1
    assert "faster in tiny-dlrmv2-float32: NEVER_CALLED. Nothing of the set is part of dlrmv2" in err
    assert item.read_text() == first, "What is there is not measured again."

    (mine / "L1" / "relu.py").write_text((SETS / "crashes" / "L1" / "relu.py").read_text())
    code, out, err = evaluate(capsys, "--resume", run, *sets, "--no-track", "--json")
    assert code == 1, err
    again = json.loads(out)
    assert [i["outcome"] for i in again["items"]] == ["INVALID", "NEVER_CALLED"]
    assert again["seed"] == results["seed"]
    assert again["sets"][0]["sha256"] != results["sets"][0]["sha256"]
    assert again["request"]["candidates"] == RunFolder(run).header()["request"]["candidates"] == [*map(str, sets[1::2])]


@pytest.mark.slow
def test_the_sound_part_of_a_set_that_breaks_a_model_is_scored_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scenarios: Path
) -> None:
    """Of two ops one is at fault: the set has no valid item, its part has one."""
    words = (scenarios, "--candidates", SETS / "one_at_fault", "--device", "cpu", "--out", tmp_path / "run")
    code, out, err = evaluate(capsys, *words, "--no-track")
    assert code == 1, err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    whole, part = (results[name]["one_at_fault"]["deployable"] for name in ("scores", "subset_scores"))
    assert (whole["num_valid"], part["num_valid"]) == (0, 1)
    shown = " ".join(out.split())
    assert shown.index("0 of 1 (0 %)") < shown.index("1 of 1 (100 %)")
    assert "without the ops at fault" in shown


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("tinny",), 2, "Did you mean tiny"),
        ((), 2, "Name a scenario set: default, full, tiny"),
        (("tiny", "--model", "tiny-lama"), 2, "Did you mean tiny-llama"),
        (("tiny", "--candidates", "no_such_set"), 2, "no_such_set"),
        (("tiny", "--candidates", "liger", "--restarts", "2"), 2, "num_restarts is 2; the least is 3"),
        (("tiny", "--candidates", "liger", "--device", "fake"), 2, "--device fake is not cpu or cuda"),
        (("tiny", "--out", "x", "--resume", "y"), 2, "give one of them"),
        (("--resume", "no_such_run"), 3, "There is no run folder no_such_run"),
        (("--resume", __file__), 3, "is a file; a run is a folder"),
        (("default", "--candidates", "liger", "--device", "cpu"), 2, "cannot be scored: Manifest"),
    ],
)
def test_a_mistake_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, says: str
) -> None:
    got, out, err = evaluate(capsys, *words)
    assert (got, out) == (code, "")
    assert says in " ".join(err.split())
    assert err.count("error:") == 1
    assert not (tmp_path / "runs").exists()


def begun(tmp_path: Path, scenarios: ScenarioSet) -> tuple[EvalRun, RunFolder]:
    """A run of a set in-process, before anything is measured."""
    run = EvalRun(scenarios, read_sets([str(SETS / "sound")]), "cpu", read_manifest(), request=REQUEST)
    return run, run.start(tmp_path / "run")


ONE = ScenarioSet("mine", (DLRM,))
REQUEST = {"scenarios": "tiny", "model": None, "candidates": [str(SETS / "sound")], "device": "cpu", "restarts": None}


def edit(path: Path, change: Callable[[Json], object]) -> None:
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda h: h["manifest"].update(version="2025.1"), 3, "manifest 2025.1"),
        (lambda h: h.pop("seed"), 3, "incomplete: run.json has no seed"),
        (lambda h: h.pop("request"), 3, "does not say how it was started"),
        (lambda h: h.update(kind="e2e"), 3, "a run of kind 'e2e'"),
        (lambda h: h.update(schema_version=0), 3, "schema version 0"),
        (lambda h: h["environment"].update(device="cuda"), 2, "ran on cuda; it cannot go on with --device cpu"),
        (lambda h: None, 2, "with other scenarios, restarts or models"),
    ],
)
def test_a_run_that_cannot_be_gone_on_with_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Json], object], code: int, says: str
) -> None:
    """Its request says tiny, its scenarios are others."""
    _, folder = begun(tmp_path, ONE)
    edit(folder.path / "run.json", change)
    got, _, err = evaluate(capsys, "--resume", folder.path)
    assert got == code, err
    assert says in " ".join(err.split())


def test_a_manifest_that_differs_is_refused_naming_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scenarios: Path, manifest: Path
) -> None:
    words = (scenarios, "--candidates", FASTER, "--device", "cpu", "--out", tmp_path / "run", "--no-track")
    assert evaluate(capsys, *words)[0] == 1
    before = read_manifest().sha256[:12]
    write_manifest(manifest, good=0.02)
    code, _, err = evaluate(capsys, "--resume", tmp_path / "run", "--no-track")
    assert code == 3
    assert before in err
    assert read_manifest().sha256[:12] in err
    code, _, err = evaluate(capsys, *words)
    assert code == 2
    assert "holds a run already" in err


def test_a_truncated_item_is_told_by_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, folder = begun(tmp_path, ONE)
    (folder.path / "items").mkdir()
    (folder.path / "items" / "x--sound.json").write_text('{"item": "x"')
    with pytest.raises(Exception, match=r"x--sound\.json is cut off"):
        run_eval(run, folder, Watcher())


def test_scenarios_that_need_more_gpus_than_there_are_are_blocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    part = (WorkloadPart("single", 1, 0.05),)
    scenarios = ScenarioSet("mine", (EvalScenario("tiny-llama", "float32", 2, part, part),))
    run = EvalRun(scenarios, read_sets([str(FASTER)]), "cuda", read_manifest())
    folder = RunFolder.create(KIND, {}, environment("cpu"), tmp_path / "run", **run.facts())
    results = run_eval(run, folder, Watcher())
    (item,) = results["items"]
    assert (item["outcome"], item["reason"], item["num_ranks"]) == ("BLOCKED", "TOO_FEW_DEVICES", 2)
    assert "2 ranks, a GPU each; this machine has 1" in item["message"]
    assert results["scores"]["faster"]["macroeval"]["0.5"]["coverage"] == 0.0
    assert not_passed(results) == [], "It is no fault of the set."
    second = {**item, "implementation": "other", "reason": "BASELINE_FAILED", "message": "Its weights are gone.\nMore"}
    results["items"] = [{**second, "implementation": "faster"}, second]
    assert not_passed(results) == [f"{item['item']}: not measured (BASELINE_FAILED). Its weights are gone."]


def start(tmp_path: Path, manifest: Path, *words: str) -> subprocess.Popen[str]:
    script = (
        "import sys; from pathlib import Path; import fastkernels.scoring.manifest as m; "
        f"m.MANIFEST_PATH = Path({str(manifest)!r}); from fastkernels.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, "eval", *words, "--device", "cpu", "--no-track"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_an_ended_run_keeps_its_items_and_leaves_no_process(
    tmp_path: Path, scenarios: Path, manifest: Path, ending: signal.Signals
) -> None:
    """The first scenario is done, the second hangs in its trial."""
    folder = hanging_set(tmp_path / "sets")
    file = (folder / "L1" / "relu.py").rename(folder / "L1" / "spmm.py")
    old, new = "self, x: Tensor", "self, crow_indices: Tensor, col_indices: Tensor, values: Tensor, x: Tensor"
    file.write_text(file.read_text().replace("class ReLU", "class SpMM").replace(old, new))
    scenarios.write_text(SCENARIOS + MORE)
    sets = ("--candidates", str(folder), "--candidates", str(SETS / "sound"))
    process = start(tmp_path, manifest, str(scenarios), *sets, "--out", str(tmp_path / "run"))
    item = tmp_path / "run" / "items" / "tiny-dlrmv2-float32--sound.json"
    try:
        wait_for(lambda: item.is_file() and bool(hanging()))
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 3
        process.send_signal(ending)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    wait_for(lambda: are_gone(children) and not hanging(), 20)
    assert json.loads(item.read_text())["outcome"] == "MEASURED"
    if ending == signal.SIGINT:
        assert process.returncode == 130, err
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        assert results["status"] == "interrupted"
        assert [i["implementation"] for i in results["items"]] == ["hanging", "sound", "sound"]
        assert "What was written before is kept" in err
    else:
        assert RunFolder(tmp_path / "run").results()["items"][1]["outcome"] == "MEASURED"


@pytest.mark.slow
def test_an_interrupted_scenario_keeps_whole_restarts_as_an_incomplete_item(tmp_path: Path) -> None:
    """Interrupted as Ctrl-C does, when the last restart begins; gone on with, the item is measured again."""
    run, folder = begun(tmp_path, ONE)

    def stage(name: str, text: str, share: float) -> None:
        if "restart 3" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_eval(run, folder, Watcher(stage=stage))
    (item,) = folder.items()
    assert (item["is_complete"], item["outcome"]) == (False, "MEASURED")
    assert {p["restart"] for p in item["passes"]} == {0, 1}
    assert folder.results()["status"] == "interrupted"
    results = run_eval(run, folder, Watcher())
    assert results["status"] == "finished"
    assert results["items"][0]["is_complete"]
