"""Entries hold what their run measured, and nothing wrong has a speed."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from leaderboard_boards import WHOLE, kernels_run
from report_runs import (
    EVAL_REQUEST,
    MANIFEST,
    SCENARIO_SET,
    broken,
    eval_items,
    item,
    record,
    scenarios_of,
    timed_record,
    timing,
    write_eval_run,
)

from fastkernels.errors import RunFolderError, UnknownNameError, UsageError
from fastkernels.harness.verdict import Verdict
from fastkernels.leaderboard.entry import entry_of
from fastkernels.leaderboard.kernel_names import defined_kernels
from fastkernels.leaderboard.op_scores import op_deployable, op_scores, op_speed
from fastkernels.leaderboard.submission import submission
from fastkernels.registry import ops_of_level
from fastkernels.report.mean_speedup import mean_speedup
from fastkernels.report.view import headline
from fastkernels.scoring.deployable import deployable
from fastkernels.scoring.macroeval import macroeval
from fastkernels.scoring.scores import items_of, subset_items_of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("leaderboard")


@pytest.fixture(scope="module")
def kernels_entry(root: Path) -> dict[str, Any]:
    return entry_of(submission(kernels_run(root / "kernels"), "Somebody"))


@pytest.fixture(scope="module")
def eval_entry(root: Path) -> dict[str, Any]:
    return entry_of(submission(write_eval_run(root / "eval"), "Somebody", "fast"))


def test_an_entry_says_what_was_run_and_where(root: Path, kernels_entry: dict[str, Any]) -> None:
    results = (root / "kernels" / "results.json").read_bytes()
    assert kernels_entry["run"]["results_sha256"] == hashlib.sha256(results).hexdigest()
    assert kernels_entry["run"]["request"] == WHOLE
    assert (kernels_entry["hardware"], kernels_entry["marks"]) == ("NVIDIA H200", [])
    assert kernels_entry["environment"]["packages"]["torch"] == "2.13.0"
    judged_by = {"device": "cuda", "quick": False, "dtype": None, "cases_sha256": None, "timeout": None}
    assert judged_by.items() <= kernels_entry["judged_by"].items()


def test_samples_become_intervals_and_are_left_out(kernels_entry: dict[str, Any]) -> None:
    found = {op["op"]: op for op in kernels_entry["ops"]}
    assert [t["ratio"] for t in found["rms_norm"]["timings"]] == [1.62, 1.31, 1.004]
    assert found["rms_norm"]["speedup"] == pytest.approx((1.62 * 1.31 * 1.004) ** (1 / 3))
    assert found["rms_norm"]["low"] < found["rms_norm"]["speedup"] < found["rms_norm"]["high"]
    assert "samples" not in json.dumps(kernels_entry)


def test_an_op_that_did_not_pass_has_no_speed_in_an_entry(root: Path) -> None:
    cheat = record("linear", "fast", Verdict.CHEATING, timings=[timing(9.0)])
    entry = entry_of(submission(kernels_run(root / "cheat", [cheat]), "A"))
    assert entry["ops"][0]["timings"] == []
    assert entry["ops"][0]["speedup"] is None
    score = entry["scores"]["L1"]
    assert (score["deployable"]["speedup"], score["speedup"], score["num_valid"]) == (1.0, None, 0)
    assert score["fast_1"]["num_faster"] == 0


def test_all_registered_ops_are_targets_of_a_kernels_run(kernels_entry: dict[str, Any]) -> None:
    level1, level2 = len(ops_of_level(1)), len(ops_of_level(2))
    scores = kernels_entry["scores"]
    assert list(scores) == ["L1+L2", "L1", "L2"]
    assert scores["L1"]["num_targets"] == level1
    assert scores["L1+L2"]["num_targets"] == level1 + level2
    assert scores["L1"]["num_judged"] == 4
    passed = [op for op in kernels_entry["ops"] if op["level"] == 1 and op["verdict"] == "PASSED"]
    gained = sum(op_deployable("PASSED", op["timings"]).centre for op in passed)
    assert scores["L1"]["deployable"]["speedup"] == pytest.approx(math.exp(gained / level1))
    assert scores["L1"]["coverage"] == len(passed) / level1


def test_what_cannot_be_tested_is_no_failure_of_the_set() -> None:
    """It counts as not covered, and not as judged."""
    ops = [{"level": 1, "verdict": v, "low": None, "timings": []} for v in ("PASSED", "TIMEOUT", "UNTESTABLE")]
    score = op_scores({"1": 8}, ops)["L1"]
    assert (score["num_judged"], score["correctness"], score["coverage"]) == (2, 0.5, 0.125)
    score = op_scores({"1": 8}, ops[2:])["L1"]
    assert (score["num_judged"], score["correctness"]) == (0, 0.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"verdict": Verdict.JUDGE_ERROR}, r"no judgement of linear: the judge itself failed .* --resume tries them"),
        ({"set_sha256": "b" * 64}, "of 2 states of the set.*with --resume, what is of"),
    ],
)
def test_a_kernels_run_that_does_not_speak_of_one_set_is_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    """Of the set that is meant: another one's records are no matter."""
    found = [
        timed_record("rms_norm", "mine", set_sha256="a" * 64),
        timed_record("embedding", "mine"),  # of a run of before
        timed_record("linear", "mine", **{"set_sha256": "a" * 64, **changed}),
        timed_record("linear", "other", set_sha256="c" * 64),
    ]
    run = kernels_run(tmp_path / "run", found)
    assert submission(run, "A", "other").implementation == "other"
    with pytest.raises(RunFolderError, match=message):
        submission(run, "A", "mine")


def test_ties_count_as_one_and_losses_as_measured() -> None:
    def case(ratio: float, speed: str) -> dict[str, Any]:
        return {"ratio": ratio, "low": ratio / 1.01, "high": ratio * 1.01, "speed": speed}

    assert op_deployable("PASSED", [case(1.04, "TIE")]).centre == 0
    both = op_deployable("PASSED", [case(0.5, "LOSS"), case(1.04, "TIE")])
    assert math.exp(both.centre) == pytest.approx(0.5**0.5)
    assert op_deployable("INCORRECT_NUMERICAL", [case(2.0, "WIN")]).centre == 0
    assert op_speed([case(2.0, "WIN"), case(0.5, "LOSS")]) == "MIXED"
    assert (op_speed([case(2.0, "WIN"), case(1.0, "TIE")]), op_speed([])) == ("WIN", "")
    assert mean_speedup([]) is None


def test_every_op_that_was_timed_is_in_one_count() -> None:
    def op(*speeds: str) -> dict[str, Any]:
        timings = [{"ratio": 1.0, "low": 0.9, "high": 1.1, "speed": speed} for speed in speeds]
        return {"level": 1, "verdict": "PASSED", "low": 0.9, "timings": timings}

    score = op_scores({"1": 8}, [op("WIN", "TIE"), op("WIN", "LOSS"), op("LOSS"), op("TIE"), op("LOSS", "WIN"), op()])
    counts = [score["L1"][f"num_{name}"] for name in ("valid", "wins", "losses", "ties", "mixed")]
    assert counts == [6, 1, 1, 1, 2]


def test_a_scope_without_an_op_is_not_claimed() -> None:
    op = {
        "level": 3,
        "verdict": "PASSED",
        "low": 1.2,
        "timings": [{"ratio": 1.3, "low": 1.2, "high": 1.4, "speed": "WIN"}],
    }
    assert list(op_scores({"1": 5, "3": 2}, [op])) == ["L3"]


def test_the_entry_of_an_eval_run_has_the_scores_of_its_set_alone(root: Path, eval_entry: dict[str, Any]) -> None:
    items = items_of(json.loads((root / "eval" / "results.json").read_text()))["fast"]
    assert eval_entry["scores"]["deployable"]["speedup"] == deployable(items).speedup
    assert eval_entry["scores"]["macroeval"]["1.0"]["score"] == macroeval(items, 1.0).score
    assert [i["item"] for i in eval_entry["items"]] == [i.name for i in items]
    assert (eval_entry["manifest"], eval_entry["scenario_set"]) == (MANIFEST, SCENARIO_SET)
    assert eval_entry["implementation"]["sha256"].startswith(b"fast".hex())
    assert eval_entry["subset_scores"] is None
    assert "passes" not in json.dumps(eval_entry)


def test_items_of_an_entry_say_what_was_called_and_what_was_at_fault(root: Path) -> None:
    entry = entry_of(submission(root / "eval", "B", "fragile"))
    found = {i["model"]: i for i in entry["items"]}
    crashed = found["tiny-mixtral"]
    assert (crashed["verdict"], crashed["reason"], crashed["speedup"]) == ("INVALID", "CRASH", None)
    assert list(crashed["at_fault"]) == ["moe_sum"]
    assert crashed["subset"]["verdict"] == "VALID"
    assert crashed["subset"]["speedup"]["ratio"] > 1.1
    called = [r["op"] for r in found["tiny-llama"]["replaced"] if r["statuses"] == ("REPLACED",)]
    assert called == ["rms_norm"]
    assert entry["scores"]["fast_1"] == {**entry["scores"]["fast_1"], "num_faster": 1, "num_targets": 6}
    part = subset_items_of(json.loads((root / "eval" / "results.json").read_text()))["fragile"]
    assert entry["subset_scores"]["deployable"]["speedup"] == deployable(part).speedup
    assert entry["subset_scores"]["macroeval"]["0.5"]["score"] == macroeval(part).score


def test_what_a_run_claims_of_its_scores_is_reckoned_again(root: Path, eval_entry: dict[str, Any]) -> None:
    run = write_eval_run(root / "claims", scores={"fast": {"deployable": {"speedup": 99.0}}})
    assert entry_of(submission(run, "A", "fast"))["scores"] == eval_entry["scores"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"is_finished": False}, RunFolderError, "unfinished: an entry needs a finished run"),
        ({"status": "interrupted"}, RunFolderError, "is interrupted"),
        ({"found": []}, RunFolderError, "no judgement of any set"),
        ({"manifest": None}, RunFolderError, "by which manifest"),
        ({"scenarios": None}, RunFolderError, "what its scenarios were"),
        ({"sets": []}, RunFolderError, "not among the run's sets"),
        ({"eval_schema_version": 9}, RunFolderError, "eval schema version 9"),
        (
            {"found": eval_items()[:7], "scenarios": scenarios_of(eval_items())},
            RunFolderError,
            "lacks 5 whole items of f",
        ),
    ],
)
def test_an_incomplete_eval_run_is_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        entry_of(submission(write_eval_run(tmp_path / "run", **change), "A", "fragile"))


def test_an_item_that_was_interrupted_is_not_whole(tmp_path: Path) -> None:
    run = write_eval_run(tmp_path / "run", [item("tiny-llama", "language", "mine", is_complete=False)])
    with pytest.raises(RunFolderError, match=r"lacks 1 whole items of mine \(tiny-llama-bfloat16\)"):
        entry_of(submission(run, "A"))


def test_a_run_folder_without_its_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match=r"run\.json is missing"):
        submission(tmp_path / "empty", "A")
    run = write_eval_run(tmp_path / "damaged")
    data = json.loads((run / "results.json").read_text())
    del data["items"][0]["passes"]
    (run / "results.json").write_text(json.dumps(data))
    with pytest.raises(RunFolderError, match=r"items\[0\] lacks passes"):
        submission(run, "A", "fast")


@pytest.mark.parametrize(
    ("agent", "name", "error", "message"),
    [
        ("A", None, UsageError, r"holds 2 sets \(fast, fragile\): name one with --set"),
        ("A", "fats", UnknownNameError, "Did you mean fast"),
        ("  ", "fast", UsageError, "is no name"),
        ("a\nb", "fast", UsageError, "is no name"),
        ("x" * 81, "fast", UsageError, "1 to 80"),
    ],
)
def test_a_submission_names_an_agent_and_one_set(
    root: Path, eval_entry: dict[str, Any], agent: str, name: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        submission(root / "eval", agent, name)


def test_a_run_of_another_kind_is_refused(tmp_path: Path) -> None:
    run = kernels_run(tmp_path / "run", [])
    for name in ("run.json", "results.json"):
        data = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps({**data, "kind": "e2e"}))
    with pytest.raises(UsageError, match="a run of e2e"):
        submission(run, "A")


def test_an_entry_tells_no_folder_of_the_machine_and_keeps_a_shared_file_once(tmp_path: Path) -> None:
    text = "def adapt(op_class):\n    return None\n"
    path = "/home/somebody/secret/adapt.py"
    shared = [timed_record(op, "mine", source=text, source_path=path) for op in ("linear", "rms_norm", "embedding")]
    entry = entry_of(submission(kernels_run(tmp_path / "run", shared), "A"))
    assert {op["file"] for op in entry["ops"]} == {"adapt.py"}
    assert len({op["source"] for op in entry["ops"]}) == 1
    assert "/home/somebody" not in json.dumps(entry)


def test_blocked_and_never_called_items_count_in_every_denominator(tmp_path: Path) -> None:
    found = [
        item("tiny-llama", "language", "mine", 1.3),
        broken("tiny-gpt-oss", "language", "mine", "BLOCKED", "TOO_FEW_DEVICES"),
        broken("tiny-dinov3", "embedding", "mine", "NEVER_CALLED", ""),
        broken("tiny-sdxl", "image", "mine", "INVALID", "CRASH"),
    ]
    scores = entry_of(submission(write_eval_run(tmp_path / "run", found), "A"))["scores"]
    assert scores["deployable"]["validity"] == 0.25
    assert scores["macroeval"]["0.5"]["coverage"] == 0.25
    assert scores["macroeval"]["0.5"]["coverage_macro"] == pytest.approx(0.5 / 3)
    assert scores["fast_1"]["num_targets"] == 4


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("@triton.jit\ndef scale(x):\n    pass\n", ["scale (Triton)"]),
        ("@triton.jit(do_not_specialize=['n'])\ndef a(x):\n    pass\n@other\ndef b():\n    pass\n", ["a (Triton)"]),
        ('S = """\n__global__ void __launch_bounds__(256, 2) add(float* x) {}\n"""\n', ["add (CUDA)"]),
        ('S = "template<int N> __global__ void copy(const float4* __restrict__ x)"', ["copy (CUDA)"]),
        ("def f(x):\n    return x\n", []),
        ("not python (((( __global__ void k(int n)", ["k (CUDA)"]),
        ("__global__ " * 5000, []),
        ("@a" + ".b" * 900 + "\ndef f(): pass\n", []),
    ],
)
def test_kernels_of_a_file_are_read_from_its_text(source: str, found: list[str]) -> None:
    assert defined_kernels(source) == found


def test_the_headline_of_a_hostile_message_is_short(root: Path) -> None:
    message = "Traceback (most recent call last):\n  File 'x'\nRuntimeError: " + "x" * 900
    found = [broken("tiny-llama", "language", "a", "INVALID", "CRASH", message=message)]
    entry = entry_of(submission(write_eval_run(root / "long", found), "A"))
    assert entry["items"][0]["message"] == headline(message)[:400]
    assert EVAL_REQUEST.items() <= entry["run"]["request"].items()
