"""A board takes only entries that compare, names what it refuses, and is read back as it was written."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from leaderboard_boards import OTHER_GPU, WHOLE, kernels_run
from report_runs import (
    MANIFEST,
    REQUEST,
    SCENARIO_SET,
    eval_items,
    item,
    records,
    scenarios_of,
    timed_record,
    timing,
    write_eval_run,
)

from fastkernels.errors import InputFileError, RunFolderError, UsageError
from fastkernels.leaderboard import store
from fastkernels.leaderboard.entry import entry_of
from fastkernels.leaderboard.store import Board
from fastkernels.leaderboard.submission import submission

OWN = MANIFEST["sha256"][:12]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("leaderboard")


@pytest.fixture(scope="module")
def kernels_entry(root: Path) -> dict[str, Any]:
    return entry_of(submission(kernels_run(root / "kernels"), "Somebody"))


@pytest.fixture(scope="module")
def eval_entry(root: Path) -> dict[str, Any]:
    return entry_of(submission(write_eval_run(root / "eval"), "Somebody", "fast"))


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


def test_the_default_board_is_the_shipped_one_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTKERNELS_HOME", str(tmp_path))
    monkeypatch.setattr(store, "_SHIPPED", tmp_path / "shipped")
    assert store.default_board() == tmp_path / "leaderboard"
    (tmp_path / "shipped").mkdir()
    assert store.default_board() == tmp_path / "shipped"


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
