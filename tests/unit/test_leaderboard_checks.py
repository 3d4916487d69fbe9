"""A run that does not hold what it was asked for has no entry: each edit of an honest results.json is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from report_runs import REQUEST, broken, item, replaced, timed_record, timing, write_eval_run, write_run, wrong

from fastkernels.bench.eval.records import SubsetRecord
from fastkernels.bench.eval.scenario_file import find_scenario_set, scenario_sets
from fastkernels.errors import RunFolderError
from fastkernels.harness.timed_figures import LEAST_NOISE, timed_figures, timed_of
from fastkernels.harness.verdict import Verdict
from fastkernels.leaderboard.build import site_files
from fastkernels.leaderboard.entry import entry_of
from fastkernels.leaderboard.store import Board, default_board
from fastkernels.leaderboard.submission import scenarios_digest, submission

Json = dict[str, Any]
Edit = Callable[[Json], object]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One set over five scenarios: a win, a loss, a wrong answer, a crash with a part that works, what is blocked."""
    found = [
        item("tiny-llama", "language", "mine", 1.5),
        item("tiny-dinov3", "embedding", "mine", 0.7),
        item("tiny-whisper", "speech", "mine", 3.0, discrepancies=[0.01, 0.05, 0.3]),
        broken(
            "tiny-mixtral", "language", "mine", "INVALID", "CRASH", replacements=[replaced("rms_norm", "mine")],
            subset=SubsetRecord({"moe_sum": "CRASH"}, ["rms_norm"], item("tiny-mixtral", "language", "mine", 1.2)),
        ),
        broken("tiny-gpt-oss", "language", "mine", "BLOCKED", "TOO_FEW_DEVICES", num_ranks=8),
    ]  # fmt: skip
    return write_eval_run(tmp_path_factory.mktemp("evaluated") / "run", found)


def entry_of_edited(run: Path, place: Path, edit: Edit) -> Json:
    """What an entry of the run would hold if its results.json had been edited."""
    place.mkdir()
    results = copy.deepcopy(json.loads((run / "results.json").read_text()))
    edit(results)
    (place / "run.json").write_text((run / "run.json").read_text())
    (place / "results.json").write_text(json.dumps(results))
    return entry_of(submission(place, "A"))


def test_an_honest_run_has_an_entry(evaluated: Path, tmp_path: Path) -> None:
    entry = entry_of_edited(evaluated, tmp_path / "run", lambda results: None)
    verdicts = [i["verdict"] for i in entry["items"]]
    assert verdicts == ["VALID", "VALID", "INACCURATE", "INVALID", "BLOCKED"]
    assert entry["items"][3]["subset"]["verdict"] == "VALID"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r["items"].__delitem__(slice(1, None)), "lacks 4 whole items of mine"),
        (lambda r: r["items"].append(r["items"][0]), "items of tiny-llama-bfloat16 more than once"),
        (lambda r: r["items"][0].update(item="easy"), "items of easy, which its scenarios do not have"),
        (lambda r: r["items"][1].update(model="tiny-llama"), "model of an item of tiny-dinov3-.* is 'tiny-llama'"),
        (lambda r: r["items"][3]["subset"]["item"].update(dtype="float32"), "dtype of an item of tiny-mixtral"),
        (lambda r: r["scenarios"]["scenarios"][0].pop("latency"), r"scenarios\.scenarios\[0\] lacks latency"),
        (lambda r: r["scenarios"]["scenarios"][0].update(expert_parallel=1), r"\[0\]\.expert_parallel is 1, not true"),
        (lambda r: r["scenarios"].update(easy=True), "scenarios: .*unexpected keyword argument 'easy'"),
        (lambda r: r["scenarios"].update(num_restarts=1), "scenarios: num_restarts is 1; the least is 3"),
        (lambda r: r["scenarios"].update(name="other"), "scenario_set is 'few', and scenarios.name 'other'"),
        (lambda r: r["items"][1].update(set_sha256="b" * 64), "judgements of 2 states of the set, whose files changed"),
        (lambda r: r["items"][1].update(set_sha256=""), "judgements of 2 states of the set"),
        (lambda r: r["sets"][0].update(sha256="b" * 64), "judgements of 2 states of the set"),
    ],
)  # fmt: skip
def test_every_scenario_has_one_item_and_there_is_no_other(
    evaluated: Path, tmp_path: Path, edit: Edit, message: str
) -> None:
    with pytest.raises(RunFolderError, match=message):
        entry_of_edited(evaluated, tmp_path / "run", edit)


def _each(part: str, edit: Edit) -> Edit:
    """The edit of what every item has under a name."""
    return lambda results: [edit(one[part]) for one in results["items"]]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            _each("thresholds", lambda t: t.update(good=10.0, bad=20.0)),
            "thresholds of item tiny-llama-bfloat16 is .*10",
        ),
        (_each("thresholds", lambda t: t.update(tau=0.1)), r"thresholds of item .*0\.1.* by manifest 2026"),
        (lambda r: r["items"][3]["subset"]["item"]["thresholds"].update(bad=9.0), "thresholds of item tiny-mixtral"),
        (lambda r: r["items"][2].update(family="language"), "family of item tiny-whisper-.* is language, and speech"),
        (
            lambda r: r["items"][2].update(family="language", architecture="llama"),
            "architecture is 'llama', and tiny-whisper is of 'whisper'",
        ),
        (
            lambda r: r["manifest"].update(sha256="ab" * 32),
            "manifest '2026.11' of SHA-256 abababababab; this program has",
        ),
        (lambda r: r.update(manifest={"version": "2099.01", "sha256": "zz"}), "cannot tell what that one allows"),
    ],
)
def test_an_item_is_held_against_the_manifest_and_not_against_what_the_run_says(
    evaluated: Path, tmp_path: Path, edit: Edit, message: str
) -> None:
    with pytest.raises(RunFolderError, match=message):
        entry_of_edited(evaluated, tmp_path / "run", edit)


def test_a_model_that_is_not_shipped_is_of_the_architecture_that_its_item_names(tmp_path: Path) -> None:
    """Its files may lie on another machine."""
    there = item("/models/llama", "language", "mine", architecture="llama", item="llama-bfloat16")
    run = write_eval_run(tmp_path / "run", [there])
    assert entry_of(submission(run, "A"))["items"][0]["family"] == "language"
    with pytest.raises(RunFolderError, match=r"no architecture named 'lama'\. Did you mean llama"):
        entry_of_edited(run, tmp_path / "other", lambda r: r["items"][0].update(architecture="lama"))


def _passes(item: int, edit: Callable[[list[Json]], list[Json]]) -> Edit:
    return lambda results: results["items"][item].update(passes=edit(results["items"][item]["passes"]))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_passes(1, lambda passes: []), "its passes are not 4 of throughput 'balanced x1', 12 of latency 'single x12'"),
        (_passes(1, lambda passes: [p for p in passes if p["kind"] == "throughput"]), "in each of 3 restarts"),
        (_passes(0, lambda passes: [p for p in passes if p["restart"] == 0]), "its passes are not"),
        (_passes(0, lambda passes: [*passes, passes[0]]), "its passes are not"),
        (_passes(0, lambda passes: [{**p, "restart": 3 * p["restart"]} for p in passes]), "its passes are not"),
        (_passes(0, lambda passes: [{**p, "workload": "easy x1"} for p in passes]), "its passes are not"),
        (
            lambda r: [
                p.update({s: p[s][1:] for s in ("reference_s", "candidate_s")}) for p in r["items"][1]["passes"]
            ],
            "item tiny-dinov3-bfloat16 of mine: its passes are not",
        ),
        (
            lambda r: r["items"][2]["discrepancies"].__delitem__(slice(1, None, 3)),
            "32 discrepancies of 3 x 16 compared",
        ),
        (
            lambda r: r["items"][1].update(reference_noise=[1.0, -1.0]),
            "reference_noise has 2 values of 3 restarts of 16",
        ),
        (lambda r: r["items"][3]["subset"]["item"].update(discrepancies=[]), "item tiny-mixtral-.*: it has 0 discrep"),
    ],
)
def test_no_sample_is_left_out(evaluated: Path, tmp_path: Path, edit: Edit, message: str) -> None:
    with pytest.raises(RunFolderError, match=message):
        entry_of_edited(evaluated, tmp_path / "run", edit)


def test_a_part_that_was_measured_afterwards_has_later_restarts_and_a_ranking_one_discrepancy_a_restart(
    evaluated: Path, tmp_path: Path
) -> None:
    def edit(results: Json) -> None:
        part = results["items"][3]["subset"]["item"]
        part["reference_noise"] *= 2
        for one in part["passes"]:
            one["restart"] += 3

    assert entry_of_edited(evaluated, tmp_path / "later", edit)["items"][3]["subset"]["verdict"] == "VALID"
    ranked = write_eval_run(tmp_path / "run", [item("tiny-dlrmv2", "ranking", "mine")])
    entry = entry_of_edited(ranked, tmp_path / "ranked", lambda r: r["items"][0].update(discrepancies=[0.0] * 3))
    assert entry["items"][0]["verdict"] == "VALID"


def _named(name: str, models: list[str] | None, **changed: Any) -> Edit:
    """The edit that makes a run one of the shipped set, or of some of its models, with what is changed of it."""

    def edit(results: Json) -> None:
        shipped = find_scenario_set(name)
        chosen = shipped.only(models) if models else shipped
        results["request"]["model"] = models
        results["scenario_set"], results["scenarios"] = name, {**chosen.to_json(), **changed}

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        lambda r: (r.update(scenario_set="tiny"), r["scenarios"].update(name="tiny")),
        _named("tiny", None, num_passes=1, num_checked=1),
        _named("tiny", None, num_restarts=3),
        _named("tiny", ["tiny-llama"], num_passes=1),
        lambda r: (_named("tiny", ["tiny-llama"])(r), r["request"].update(model=None)),
        lambda r: (_named("tiny", ["tiny-llama"])(r), r["request"].update(model=["tiny-llama", "tiny-dinov3"])),
        lambda r: (_named("tiny", ["tiny-llama"])(r), r["request"].update(model=["no such model"])),
    ],
)
def test_a_shipped_sets_name_needs_the_shipped_set(evaluated: Path, tmp_path: Path, edit: Edit) -> None:
    with pytest.raises(RunFolderError, match="of a scenario set 'tiny' with other scenarios, workloads, restarts"):
        entry_of_edited(evaluated, tmp_path / "run", edit)


@pytest.mark.parametrize(("models", "missing"), [(None, 17), (["tiny-llama"], 1)])
def test_the_shipped_set_has_its_name(evaluated: Path, tmp_path: Path, models: list[str] | None, missing: int) -> None:
    def edit(results: Json) -> None:
        _named("tiny", models)(results)
        results["items"] = [{**results["items"][0], "item": "tiny-llama-float32", "is_complete": False}]

    with pytest.raises(RunFolderError, match=f"lacks {missing} whole items of mine"):
        entry_of_edited(evaluated, tmp_path / "run", edit)


def test_the_shipped_board_is_of_the_shipped_scenarios_and_has_a_site() -> None:
    entries = [e for e in Board(default_board()).entries() if e["kind"] == "eval"]
    for entry in entries:
        assert entry["scenario_set"] in scenario_sets()
        shipped = find_scenario_set(entry["scenario_set"])
        assert entry["scenarios_sha256"] == scenarios_digest(shipped.to_json()), entry["agent"]
        assert [i["item"] for i in entry["items"]] == [s.name for s in shipped.scenarios]
        assert "scenarios_note" not in entry, "The digest is that of the run, not one that was reckoned later."
    assert entries[0]["scenarios_sha256"] in site_files(entries)["agents/torch_native.html"]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One set's four ops of two levels: a win and a loss, a tie, a loss, a wrong answer."""
    found = [
        timed_record("rms_norm", "mine", timings=[timing(1.6), timing(0.5, "x[1, 64]")]),
        timed_record("linear", "mine"),
        timed_record("llama_mlp", "mine", level=2, timings=[timing(0.6)]),
        wrong("silu_and_mul", "mine", Verdict.INCORRECT_NUMERICAL, "y[0, 61] is 0."),
    ]
    return write_run(tmp_path_factory.mktemp("judged") / "run", found, request={**REQUEST, "quick": False})


def _op(name: str, edit: Edit) -> Edit:
    """The edit of one op's record."""
    return lambda results: edit(next(one for one in results["ops"] if one["op"] == name))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.update(ops=r["ops"][:1] * 88), "holds 88 judgements of linear by one set"),
        (_op("rms_norm", lambda op: op.update(op="made_up_1")), "'made_up_1'; this program has no op of that name"),
        (_op("llama_mlp", lambda op: op.update(level=1)), "llama_mlp at level 1; it is an op of level 2"),
    ],
)
def test_each_op_is_a_target_once_at_its_own_level(judged: Path, tmp_path: Path, edit: Edit, message: str) -> None:
    entry = entry_of_edited(judged, tmp_path / "honest", lambda results: None)
    assert entry["scores"]["L1"]["num_targets"] == entry["targets"]["1"]
    with pytest.raises(RunFolderError, match=message):
        entry_of_edited(judged, tmp_path / "run", edit)


def _timing(name: str, number: int = 0, **changed: Any) -> Edit:
    return _op(name, lambda op: op["timings"][number].update(changed))


def _without_samples(results: Json) -> None:
    for one in results["ops"]:
        for each in one["timings"]:
            one["num_calls"], each["samples"] = len(one["cases"]), []


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_timing("linear", ratio=9.0, low=8.9, high=9.1, speed="WIN"), r"linear has ratio 9\.0 \(.*\), and 1\.0"),
        (_timing("linear", high=2.0), r"linear has high 2\.0 \(x\[4096, 4096\]\), and 1\.03"),
        (_timing("linear", low=float("nan")), "linear has low nan"),
        (_timing("rms_norm", 1, speed="TIE"), r"has speed TIE \(x\[1, 64\]\), and LOSS by its samples"),
        (_timing("rms_norm", 1, noise_floor=2.0, speed="TIE"), r"has noise_floor 2\.0 .*, and 0\.02"),
        (_timing("linear", num_pairs=120), r"has num_pairs 120 .*, and 8 by"),
        (_timing("linear", candidate_us=1.0), r"has candidate_us 1\.0 .*, and 30\.0"),
        (_timing("linear", clock="judge"), "was timed by 'judge' .*; the clock of cuda is 'device events'"),
        (_op("rms_norm", lambda op: op["timings"].pop()), "num_calls 93, and 49 calls of cases and samples"),
        (_op("rms_norm", lambda op: op["cases"].pop()), "num_calls 93, and 92 calls of cases and samples"),
        (
            _op("linear", lambda op: op.update(timings=[])),
            "linear passed, and has 5 cases that were checked and 0 that",
        ),
        (_op("linear", lambda op: op.update(cases=[], num_calls=0)), "linear passed, and has 0 cases"),
        (_without_samples, "has samples .* that no figure can be reckoned from .There is no pair"),
        (
            _op("silu_and_mul", lambda op: op.update(verdict="UNTESTABLE")),
            "is UNTESTABLE, and INCORRECT_NUMERICAL in one",
        ),
    ],
)
def test_a_judgement_says_what_its_own_cases_and_samples_say(
    judged: Path, tmp_path: Path, edit: Edit, message: str
) -> None:
    with pytest.raises(RunFolderError, match=message):
        entry_of_edited(judged, tmp_path / "run", edit)


def test_what_was_only_checked_needs_no_time(judged: Path, tmp_path: Path) -> None:
    def edit(results: Json) -> None:
        results["request"]["check_only"] = True
        for one in results["ops"]:
            one["timings"], one["num_calls"] = [], len(one["cases"])

    assert entry_of_edited(judged, tmp_path / "run", edit)["scores"]["L1"]["num_valid"] == 2


def test_on_a_cpu_lateness_is_charged_and_the_noise_floor_is_its_own(judged: Path, tmp_path: Path) -> None:
    """What the judge of a CPU would have written of these samples."""
    samples = [asdict(one) for one in timing(1.5).samples]
    timed = timed_of({"samples": samples, "num_checked": 0, "late_us": 3.0})
    figures = asdict(timed_figures(timed, "cpu", LEAST_NOISE["cpu"]))
    assert figures["noise_floor"] == LEAST_NOISE["cpu"]
    assert figures["ratio"] < 1.5 - 0.05

    def edit(late_us: float) -> Edit:
        return _op("linear", lambda op: (
            op.update(device="cpu"),
            op["timings"][0].update(figures, clock="judge", samples=samples, late_us=late_us),
        ))  # fmt: skip

    assert entry_of_edited(judged, tmp_path / "honest", edit(3.0))["ops"][0]["speed"] == "WIN"
    with pytest.raises(RunFolderError, match="linear has ratio"):
        entry_of_edited(judged, tmp_path / "run", edit(0.0))
