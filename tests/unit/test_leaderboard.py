"""Entries hold what their run measured, a board takes only what compares, and nothing wrong has a speed."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from report_runs import (
    EVAL_REQUEST,
    MANIFEST,
    REQUEST,
    SCENARIO_SET,
    broken,
    eval_items,
    item,
    record,
    records,
    scenarios_of,
    timed_record,
    timing,
    write_eval_run,
)
from report_runs import write_run as write_kernels_run

from fastkernels.errors import InputFileError, RunFolderError, UnknownNameError, UsageError
from fastkernels.harness.verdict import Verdict
from fastkernels.leaderboard import store
from fastkernels.leaderboard.entry import entry_of
from fastkernels.leaderboard.kernel_names import defined_kernels
from fastkernels.leaderboard.op_scores import op_deployable, op_scores, op_speed
from fastkernels.leaderboard.store import Board
from fastkernels.leaderboard.submission import submission
from fastkernels.registry import ops_of_level
from fastkernels.report.mean_speedup import mean_speedup
from fastkernels.report.view import headline
from fastkernels.scoring.deployable import deployable
from fastkernels.scoring.macroeval import macroeval
from fastkernels.scoring.scores import items_of, subset_items_of

OWN = MANIFEST["sha256"][:12]
WHOLE = {**REQUEST, "quick": False}
OTHER_GPU = {"name": "NVIDIA B200", "num_sms": 148, "memory_bytes": 1 << 37, "l2_bytes": 1 << 27, "cuda": "13.0"}


def kernels_run(path: Path, found: list[Any] | None = None, **changed: Any) -> Path:
    """Of the set "fast", all that passed timed."""
    fast = [r for r in records() if r.implementation == "fast" and r.level == 1]
    fast.append(timed_record("vocab_parallel_embedding", "fast", level=2))
    return write_kernels_run(path, fast if found is None else found, **{"request": WHOLE, **changed})


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


@pytest.fixture
def board(tmp_path: Path, kernels_entry: dict[str, Any], eval_entry: dict[str, Any]) -> Board:
    folder = tmp_path / "board"
    folder.mkdir()
    for name, entry in (("one", kernels_entry), ("two", eval_entry)):
        (folder / f"{name}.json").write_text(json.dumps(entry))
    return Board(folder)


def test_entries_are_read_back_as_they_were_written(tmp_path: Path, root: Path) -> None:
    board = Board(tmp_path / "new")
    path = board.add(submission(kernels_run(tmp_path / "run", records()[:1]), "GPT 9 (x)"))
    assert path.name == "kernels--gpt-9-x--nvidia-h200.json"
    (entry,) = board.entries()
    assert entry == json.loads(path.read_text())
    assert not list(board.path.glob(".*"))


@pytest.mark.parametrize(
    ("changed", "words", "message"),
    [
        (
            {"baseline_roofline_share": math.inf},
            {},
            r"ops\[0\]\.timings\[0\]\.baseline_roofline_share is inf, not a fin",
        ),
        ({}, {"timeout": "soon"}, r"judged_by\.timeout is 'soon', not a finite number"),
    ],
)
def test_an_entry_that_no_command_could_read_is_not_written(
    tmp_path: Path, board: Board, changed: dict[str, Any], words: dict[str, Any], message: str
) -> None:
    """It would close the board to every later one."""
    found = [timed_record("linear", "mine", timings=[timing(1.0, **changed)])]
    run = kernels_run(tmp_path / "run", found, request={**WHOLE, **words})
    with pytest.raises(RunFolderError, match=message):
        board.add(submission(run, "Odd"), is_forced=True)
    assert len(board.entries()) == 2


@pytest.mark.parametrize("agent", ["Somebody", "SOMEBODY", " somebody "])
def test_an_agent_that_has_an_entry_is_refused(tmp_path: Path, root: Path, board: Board, agent: str) -> None:
    with pytest.raises(UsageError, match=r"has an entry of .* already: one\.json.*--force replaces"):
        board.add(submission(root / "kernels", agent))
    assert len(board.entries()) == 2


def test_force_replaces_the_agents_own_entry(tmp_path: Path, board: Board) -> None:
    run = kernels_run(tmp_path / "better", [timed_record("linear", "fast", timings=[timing(3.0)])])
    assert board.add(submission(run, "Somebody"), is_forced=True).name == "one.json"
    entries = board.entries()
    assert len(entries) == 2
    assert [op["op"] for e in entries if e["kind"] == "kernels" for op in e["ops"]] == ["linear"]


def test_names_alike_in_a_file_name_do_not_replace_each_other(tmp_path: Path, board: Board) -> None:
    run = kernels_run(tmp_path / "run", records()[:1])
    paths = {board.add(submission(run, name)) for name in ("a b", "a-b", "A_b!")}
    assert len(paths) == 3
    assert len(board.entries()) == 5


def test_of_two_adds_at_once_the_later_sees_the_earlier(
    tmp_path: Path, root: Path, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*words: Any) -> dict[str, Any]:
        time.sleep(0.3)
        return entry_of(*words)

    monkeypatch.setattr(store, "entry_of", slowly)
    run = kernels_run(tmp_path / "run", records()[:1])
    with ThreadPoolExecutor(4) as pool:
        adds = [pool.submit(board.add, submission(run, name)) for name in ("Twin", "twin", "my agent", "my-agent")]
    refused = [str(add.exception()) for add in adds if add.exception()]
    assert len(refused) == 1
    assert "has an entry of" in refused[0]
    assert {e["agent"].lower() for e in board.entries()} == {"somebody", "twin", "my agent", "my-agent"}
    assert len(board.entries()) == 5


def test_other_hardware_is_refused_and_marked_when_forced(tmp_path: Path, board: Board) -> None:
    given = submission(kernels_run(tmp_path / "run", records()[:1], gpu=OTHER_GPU), "Other")
    with pytest.raises(UsageError, match="ran on NVIDIA B200, the board's runs of kernels on NVIDIA H200"):
        board.add(given)
    path = board.add(given, is_forced=True)
    assert json.loads(path.read_text())["marks"] == [store.OTHER_HARDWARE]
    again = submission(kernels_run(tmp_path / "more", records()[:1], gpu=OTHER_GPU), "More")
    with pytest.raises(UsageError, match="their times do not compare"):
        board.add(again)  # what came in by force does not open the door


def test_hardware_is_compared_within_a_kind_and_a_scenario_set(tmp_path: Path, board: Board) -> None:
    """The board's kernels ran on a GPU, its eval run on a CPU; another scenario set is a group of its own."""
    run = write_eval_run(tmp_path / "run", [item("tiny-llama", "language", "mine")], scenario_set="others",
                         environment={"gpu": OTHER_GPU})  # fmt: skip
    assert json.loads(board.add(submission(run, "Other")).read_text())["marks"] == []
    moved = write_eval_run(tmp_path / "moved", [item("tiny-llama", "language", "mine")], environment={"num_cores": 64})
    with pytest.raises(UsageError, match="64 cores, the board's runs of eval on A Processor with 8 cores"):
        board.add(submission(moved, "Moved"))


def test_a_first_look_is_refused_and_marked_when_forced(tmp_path: Path, board: Board) -> None:
    given = submission(kernels_run(tmp_path / "run", records()[:1], request=REQUEST), "Hasty")
    with pytest.raises(UsageError, match="made with --quick"):
        board.add(given)
    assert json.loads(board.add(given, is_forced=True).read_text())["marks"] == [store.QUICK]


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"version": "2027.01", "sha256": "cd" * 32}, r"manifest 2027\.01, the entries of .* by 2026\.11"),
        ({"version": "2026.11", "sha256": "cd" * 32}, f"of SHA-256 cdcdcdcdcdcd, .* by {OWN}: one of them was"),
    ],
)
@pytest.mark.parametrize("is_forced", [False, True])
def test_another_manifest_is_refused_even_by_force(
    tmp_path: Path, board: Board, manifest: dict[str, str], message: str, is_forced: bool
) -> None:
    run = write_eval_run(tmp_path / "run", [item("tiny-llama", "language", "mine")], manifest=manifest)
    with pytest.raises(InputFileError, match=message):
        board.add(submission(run, "Other"), is_forced=is_forced)


@pytest.mark.parametrize("is_forced", [False, True])
def test_other_scenarios_under_one_name_are_refused_even_by_force(
    tmp_path: Path, board: Board, is_forced: bool
) -> None:
    run = write_eval_run(tmp_path / "run", [item("tiny-llama", "language", "mine", 2.0)])
    with pytest.raises(InputFileError, match=r"both of 'few', and differ in 5 scenarios \(tiny-dinov3-bfloat16"):
        board.add(submission(run, "Picky"), is_forced=is_forced)


@pytest.mark.parametrize("is_forced", [False, True])
def test_other_workloads_under_one_name_are_refused_even_by_force(
    tmp_path: Path, board: Board, is_forced: bool
) -> None:
    scenarios = scenarios_of(eval_items())
    run = write_eval_run(tmp_path / "run", scenarios={**scenarios, "pass_seconds": 99.0})
    with pytest.raises(InputFileError, match=r"both of 'few', with other workloads or restarts \(SHA-256"):
        board.add(submission(run, "Easy", "fast"), is_forced=is_forced)
    alike = write_eval_run(tmp_path / "alike", scenarios=dict(reversed(scenarios.items())))
    board.add(submission(alike, "Fair", "fast"))


def test_nothing_joins_an_entry_that_does_not_say_what_its_scenarios_were(
    tmp_path: Path, root: Path, board: Board
) -> None:
    path = board.path / "two.json"
    entry = json.loads(path.read_text())
    del entry["scenarios_sha256"]
    path.write_text(json.dumps(entry))
    with pytest.raises(InputFileError, match=r"Somebody's entry of .* does not say what its scenarios 'few' were"):
        board.add(submission(root / "eval", "Other", "fast"), is_forced=True)
    board.add(submission(root / "eval", "Somebody", "fast"), is_forced=True)
    assert board.add(submission(root / "eval", "Other", "fast"))


def test_a_run_of_some_models_is_ranked_apart(tmp_path: Path, board: Board) -> None:
    run = write_eval_run(tmp_path / "run", [item("tiny-llama", "language", "mine", 2.0)])
    for name in ("run.json", "results.json"):
        data = json.loads((run / name).read_text())
        data["request"]["model"] = ["tiny-llama"]
        (run / name).write_text(json.dumps(data))
    entry = json.loads(board.add(submission(run, "Picky")).read_text())
    assert entry["scenario_set"] == f"{SCENARIO_SET} (part)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cut off or altered"),
        ("[]", "does not hold a JSON object"),
        ('{"leaderboard_schema_version": 7}', "schema version 7"),
        ('{"leaderboard_schema_version": 1}', "lacks agent, kind"),
    ],
)
def test_a_file_that_is_no_entry_is_named(board: Board, text: str, message: str) -> None:
    (board.path / "bad.json").write_text(text)
    with pytest.raises(InputFileError, match=rf"bad\.json.*{message}"):
        board.entries()


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("one", "ops", None, "lacks ops"),
        ("one", "ops.0.op", "linear", "ops holds linear more than once"),
        ("one", "scores.L1.deployable.low", 1e308, r"scores\.L1\.deployable is 1e\+308 to 1\.\d+, which does not rise"),
        ("one", "ops.0.timings.0.ratio", 99.0, r"ops\[0\]\.timings\[0\] is .*, which does not rise"),
        ("one", "scores.L1.deployable.low", 10**400, "low is 1000.*, not a finite number over 0"),
        ("one", "ops.0.level", 10**400, "level is 1000.*, not a whole number of less than"),
        ("one", "ops.0.timings.0.noise_floor", -1, "noise_floor is -1, not a finite number that is 0 or more"),
        ("one", "targets.1", 3 * 10**9, r"targets\[.1.\] is 3000000000, not from 0 to 10000"),
        ("one", "cut_sources", "", "cut_sources is .., not an object"),
        ("one", "targets.1", 3, "ops holds 5 of level 1, more than targets says"),
        ("one", "sources", {}, r"sources lacks [0-9a-f]{16}, which ops\[0\] names"),
        ("one", "ops.0.kernels", None, r"ops\[0\] lacks kernels"),
        (
            "one",
            "scores.L1.deployable.low",
            math.nan,
            r"scores\.L1\.deployable\.low is nan, not a finite number over 0",
        ),
        ("one", "ops.0.timings.0.speed", "MAYBE", r"timings\[0\]\.speed is 'MAYBE', not one of WIN, LOSS, TIE"),
        ("one", "environment.packages", None, "environment lacks packages"),
        ("one", "environment.gpu", {}, r"environment\.gpu lacks name"),
        ("two", "items", None, "lacks items"),
        ("two", "scores", {}, "scores lacks deployable"),
        ("two", "items.0.thresholds", {}, r"items\[0\]\.thresholds lacks good or bad"),
        ("two", "manifest", None, "lacks manifest"),
    ],
)
def test_a_damaged_entry_is_named_with_what_is_wrong(
    board: Board, name: str, place: str, value: object, message: str
) -> None:
    """value: None takes the part away."""
    path = board.path / f"{name}.json"
    entry = part = json.loads(path.read_text())
    *way, last = (int(step) if step.isdigit() else step for step in place.split("."))
    for step in way:
        part = part[step]
    if value is None:
        del part[last]
    else:
        part[last] = value
    path.write_text(json.dumps(entry))
    with pytest.raises(InputFileError, match=rf"{name}\.json: .*{message}"):
        board.entries()


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


def test_the_default_board_is_the_shipped_one_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTKERNELS_HOME", str(tmp_path))
    monkeypatch.setattr(store, "_SHIPPED", tmp_path / "shipped")
    assert store.default_board() == tmp_path / "leaderboard"
    (tmp_path / "shipped").mkdir()
    assert store.default_board() == tmp_path / "shipped"


def test_the_headline_of_a_hostile_message_is_short(root: Path) -> None:
    message = "Traceback (most recent call last):\n  File 'x'\nRuntimeError: " + "x" * 900
    found = [broken("tiny-llama", "language", "a", "INVALID", "CRASH", message=message)]
    entry = entry_of(submission(write_eval_run(root / "long", found), "A"))
    assert entry["items"][0]["message"] == headline(message)[:400]
    assert EVAL_REQUEST.items() <= entry["run"]["request"].items()


def test_a_long_name_makes_a_file_name_that_a_disk_takes(tmp_path: Path) -> None:
    long = "Processor " * 60
    run = write_eval_run(tmp_path / "run", scenario_set="s" * 300, environment={"cpu": long})
    paths = [Board(tmp_path / "board").add(submission(run, name, "fast")) for name in ("x" * 80, "x" * 79)]
    assert len(set(paths)) == 2
    assert all(len(path.name) < 230 for path in paths)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r["items"][0]["figures"].update(regret=math.nan), "cannot be shown .ValueError: Out of range float"),
        (lambda r: r["items"][0]["passes"][0].update(reference_s=[1e300] * 4), "cannot be shown .OverflowError"),
        (lambda r: r.pop("sets"), "fast is not among the run's sets"),
    ],
)
def test_a_run_of_which_no_entry_can_be_made_is_one_message(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    run = write_eval_run(tmp_path / "run")
    data = json.loads((run / "results.json").read_text())
    edit(data)
    (run / "results.json").write_text(json.dumps(data))
    with pytest.raises(RunFolderError, match=message):
        Board(tmp_path / "board").add(submission(run, "A", "fast"))
    assert Board(tmp_path / "board").entries() == []
