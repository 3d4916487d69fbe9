"""`fastkernels report`: one run shown, two compared, and what it says of folders that are not right."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from report_runs import ENVIRONMENT, eval_items, records, timing, write_eval_run, write_run, wrong
from report_runs import record as make_record

from fastkernels.capture.case import Case
from fastkernels.cli import main
from fastkernels.harness.verdict import Verdict
from fastkernels.report.compare import compare_runs, differences, ratio_of_speedups
from fastkernels.report.load import load_results
from fastkernels.report.publish import write_page

B200 = {**ENVIRONMENT["gpu"], "name": "NVIDIA B200"}


def run_command(*words: object) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    code = left.value.code
    assert code is None or isinstance(code, int)
    return code or 0


def results(path: Path, found: list[Any], **environment: Any) -> dict[str, Any]:
    return load_results(write_run(path, found, **environment))


def test_a_run_is_shown_and_its_report_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    assert run_command("report", run) == 0
    out = capsys.readouterr().out
    assert "1.62" in out
    assert "CHEATING" in out
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert f"report: {run / 'report.html'}" in out


def test_what_failed_is_told_whole_below_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signature = "L1/x.py: other signature.\n  baseline:  forward(self, x)\n  candidate: forward(self, y)"
    where = "[captured decode bfloat16 x[4096, 4096] residual[4096, 4096]]"
    found = [
        make_record("rms_norm", "tied", timings=[timing(1.01)]),
        wrong("rms_norm", "off", Verdict.INCORRECT_NUMERICAL, f"y[0, 3] is 1, expected 2 within 0.001. {where}"),
        wrong("linear", "off", Verdict.IMPORT_ERROR, signature),
        wrong("gelu", "off", Verdict.RUNTIME_ERROR, f"Traceback (most recent call last):\n  x\nKeyError: 'k' {where}"),
    ]
    syntax = "L1/embedding.py does not import.\n  File L1/embedding.py, line 4\n    return (\nSyntaxError: not closed"
    found.append(wrong("embedding", "off", Verdict.IMPORT_ERROR, syntax))
    run_command("report", write_run(tmp_path / "run", found))
    out = capsys.readouterr().out
    for text in (
        f"rms_norm (off): y[0, 3] is 1, expected 2 within 0.001. {where}\n",
        f"linear (off): {signature}\n",
        "embedding (off): SyntaxError: not closed\n",
        f"gelu (off): KeyError: 'k' {where}\n",
    ):
        assert text in out
    assert "(tied)" not in out
    assert "Noise floor: 2.0 %. WIN and LOSS need" in out


def test_two_reports_of_one_run_at_once_both_write_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, replace = tmp_path / "report.html", Path.replace

    def replace_later(temporary: Path, target: Path) -> Path:
        monkeypatch.undo()
        write_page(page, "the other's")
        return replace(temporary, target)

    monkeypatch.setattr(Path, "replace", replace_later)
    write_page(page, "mine")
    assert page.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [page]


def test_json_is_the_results_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    assert run_command("report", run, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((run / "results.json").read_text())


def test_an_unfinished_run_is_shown_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", records()[:1], is_finished=False)
    assert run_command("report", run) == 0
    assert "unfinished" in capsys.readouterr().out
    assert "not finished" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "results.json").write_text("{"), "cut off or altered"),
        (lambda run: (run / "results.json").write_text('{"schema_version": 7}'), "schema version 7"),
        (lambda run: [(run / n).unlink() for n in ("run.json", "results.json")], "is not a run folder"),
    ],
)
def test_a_bad_folder_is_one_message_and_exit_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    run = write_run(tmp_path / "run", [])
    change(run)
    assert run_command("report", run) == 3
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert "Traceback" not in error


def test_a_folder_that_is_not_there_is_exit_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("report", tmp_path / "none") == 3
    assert "There is no run folder" in capsys.readouterr().err


def changes(tmp_path: Path, before: list[Any], after: list[Any]) -> dict[tuple[str, str, str], str]:
    found = compare_runs(results(tmp_path / "before", before), results(tmp_path / "after", after)).changes
    return {(c.op, c.implementation, c.case): c.change for c in found}


LINEARS = ("in_features=64 out_features=64", "in_features=64 out_features=256")


@pytest.mark.parametrize("inits", [LINEARS, LINEARS[:1] * 2, ("", "")], ids=["told apart", "alike", "of before"])
def test_a_run_beside_itself_is_all_the_same(tmp_path: Path, inits: tuple[str, str]) -> None:
    """Two cases of one shape are each held against itself, even where only their order tells them apart."""
    timings = [timing(ratio, "x[4, 64]", init=init) for ratio, init in zip((2.0, 0.5), inits, strict=True)]
    run = results(tmp_path / "run", [make_record("linear", "a", timings=timings)])
    found = compare_runs(run, run).changes
    assert [(c.change, c.speedup_before, c.speedup_after) for c in found] == [("same", 2.0, 2.0), ("same", 0.5, 0.5)]
    assert [c.case for c in found] == [f"bfloat16 x[4, 64] {init}".strip() for init in inits]


def test_cases_are_paired_by_what_the_op_was_built_with(tmp_path: Path) -> None:
    """Whatever their order; beside a run of before, which does not say it, by their order."""
    timings = [timing(ratio, "x[4, 64]", init=init) for ratio, init in zip((2.0, 0.5), LINEARS, strict=True)]
    old, new = (
        results(tmp_path / name, [make_record("linear", "a", timings=found)])
        for name, found in (("old", timings), ("new", [timings[1], timing(8.0, "x[4, 64]", init="in_features=9")]))
    )
    assert [(c.change, c.speedup_before, c.speedup_after) for c in compare_runs(old, new).changes] == [
        ("same", 0.5, 0.5)
    ]
    (record,) = old["ops"]
    for past in record["timings"]:
        del past["init"]
    (tmp_path / "old" / "results.json").write_text(json.dumps(old))
    before = load_results(tmp_path / "old")
    assert [c.speedup_after for c in compare_runs(before, new).changes] == [0.5, 8.0]


def test_labels_tell_cases_of_one_shape_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timings = [timing(2.0, "x[4, 64]", init=init) for init in LINEARS]
    run = write_run(tmp_path / "run", [make_record("linear", "a", timings=timings)])
    assert run_command("report", run) == 0
    shown = capsys.readouterr().out
    page = (run / "report.html").read_text()
    for init in LINEARS:
        assert f"bfloat16 x[4, 64] {init}" in page
        assert f"bfloat16 {init.split()[1]} x[4, 64]" in page  # beside the marks of a plot
        assert init.split()[1] in shown


def test_how_an_op_was_built_is_one_short_word_an_argument() -> None:
    """Whole where it is short, else by a digest that changes with it."""
    few = Case("linear", {"out_features": 4, "bias": False, "dtype": torch.float16, "size": (3, 3)}, {})
    assert few.init_text() == "bias=False dtype=float16 out_features=4 size=(3,3)"
    long = [Case("linear", {"sizes": [*range(20), last]}, {}).init_text() for last in (1, 2, 2)]
    assert long[0] != long[1] == long[2]
    assert long[0].startswith("sizes=list#")
    assert len(long[0]) == len("sizes=list#") + 8


def test_every_kind_of_change_is_named(tmp_path: Path) -> None:
    before = [
        make_record("rms_norm", "a", timings=[timing(1.0), timing(1.2, "x[1, 2]"), timing(1.5, "x[3, 4]")]),
        make_record("linear", "a"),
        wrong("embedding", "a", Verdict.TIMEOUT, "late"),
        wrong("silu_and_mul", "a", Verdict.TIMEOUT, "late"),
        make_record("greedy_sample", "a"),
        make_record("rotary_embedding", "a", timings=[timing(1.0, "q[1]")]),
    ]
    after = [
        make_record("rms_norm", "a", timings=[timing(1.5), timing(1.21, "x[1, 2]"), timing(1.1, "x[3, 4]")]),
        wrong("linear", "a", Verdict.INCORRECT_DTYPE, "float16"),
        make_record("embedding", "a"),
        wrong("silu_and_mul", "a", Verdict.CHEATING, "a witness"),
        make_record("greedy_sample", "b"),
        make_record("rotary_embedding", "a", timings=[timing(2.0, "q[9]")]),
    ]
    assert changes(tmp_path, before, after) == {
        ("rms_norm", "a", "bfloat16 x[4096, 4096]"): "faster",
        ("rms_norm", "a", "bfloat16 x[1, 2]"): "same",
        ("rms_norm", "a", "bfloat16 x[3, 4]"): "slower",
        ("linear", "a", ""): "no longer passes",
        ("embedding", "a", ""): "now passes",
        ("silu_and_mul", "a", ""): "another verdict",
        ("greedy_sample", "a", ""): "gone",
        ("greedy_sample", "b", ""): "new",
        ("rotary_embedding", "a", ""): "not comparable",
    }


def test_the_ratio_of_speedups_has_the_interval_of_both() -> None:
    before = {"ratio": 1.0, "low": math.exp(-0.03), "high": math.exp(0.03)}
    after = {"ratio": 1.5, "low": 1.5 * math.exp(-0.04), "high": 1.5 * math.exp(0.04)}
    ratio, low, high = ratio_of_speedups(before, after)
    assert (ratio, low, high) == pytest.approx((1.5, 1.5 * math.exp(-0.05), 1.5 * math.exp(0.05)))


def test_an_uneven_interval_keeps_its_sides() -> None:
    before = {"ratio": 1.0, "low": math.exp(-0.3), "high": 1.0}
    after = {"ratio": 1.0, "low": 1.0, "high": 1.0}
    assert ratio_of_speedups(before, after) == pytest.approx((1.0, 1.0, math.exp(0.3)))


def test_a_change_within_the_noise_of_either_run_is_none(tmp_path: Path) -> None:
    before = [make_record("linear", "a", timings=[timing(1.0, noise_floor=0.5)])]
    after = [make_record("linear", "a", timings=[timing(1.3)])]
    assert list(changes(tmp_path, before, after).values()) == ["same"]


def test_other_hardware_is_refused_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_run(tmp_path / "first"), write_run(tmp_path / "second", gpu=B200)
    assert run_command("report", first, second) == 2
    error = capsys.readouterr().err
    assert "NVIDIA H200" in error
    assert "--force" in error
    assert not (second / "compare.html").exists()
    assert run_command("report", first, second, "--force") == 0
    assert "Different hardware: NVIDIA H200, then NVIDIA B200" in " ".join(capsys.readouterr().out.split())
    assert "Different hardware: NVIDIA H200, then NVIDIA B200" in (second / "compare.html").read_text()


def test_a_comparison_as_json_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_run(tmp_path / "first", [make_record("linear", "a", timings=[timing(1.0)])])
    second = write_run(tmp_path / "second", [make_record("linear", "a", source_sha256="e" * 64, timings=[timing(2.0)])])
    assert run_command("report", first, second, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["before"], data["after"], data["warnings"]) == ("first", "second", [])
    (change,) = data["changes"]
    assert (change["change"], change["ratio"], change["is_source_changed"]) == ("faster", 2.0, True)


def test_other_versions_are_said(tmp_path: Path) -> None:
    before = results(tmp_path / "a", [])
    after = results(tmp_path / "b", [], packages={"torch": "2.14.0"}, commit="fedcba987654")
    assert differences(before, after) == [
        "numpy was 2.3.5 and is absent.",
        "torch was 2.13.0 and is 2.14.0.",
        "FastKernels was at 0123456789ab and is at fedcba987654: the baseline may differ.",
    ]


@pytest.mark.parametrize(
    ("hashes", "says"),
    [
        ({"linear": ["1"]}, []),  # fewer ops on the same case set
        ({"linear": ["3"], "gelu": ["2"]}, ["The captured cases differ: linear."]),
        ({}, ["The captured cases differ: gelu, linear."]),
    ],
)
def test_cases_differ_where_both_runs_judged_the_op(hashes: dict[str, list[str]], says: list[str]) -> None:
    run = {"environment": ENVIRONMENT, "case_hashes": {"gelu": ["2"], "linear": ["1"]}}
    assert differences(run, {**run, "case_hashes": hashes}) == says


def test_comparing_two_empty_runs_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_run(tmp_path / "a", []), write_run(tmp_path / "b", [])
    assert run_command("report", first, second) == 0
    assert "0 of 0 changed." in capsys.readouterr().out


@pytest.mark.parametrize("word", ["commit", "cpu", "num_cores"])
def test_a_run_that_does_not_say_all_of_its_machine_is_shown(tmp_path: Path, word: str) -> None:
    assert run_command("report", write_run(tmp_path / "kernels", records()[:1], **{word: None})) == 0
    assert run_command("report", write_eval_run(tmp_path / "eval", eval_items()[:1], environment={word: None})) == 0


def _edited(run: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    path = run / "results.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return run


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.update(seconds=math.nan), "seconds is nan, not a finite number; the results are damaged"),
        (lambda r: r["items"][0]["passes"][0].update(reference_s=[1e300] * 4), "cannot be shown (OverflowError: math"),
        (
            lambda r: r["items"][7]["subset"]["item"]["replacements"][0].pop("status"),
            "items[7].subset.item.replacements[0] lacks status",
        ),
        (lambda r: r["items"][0].update(seconds=10**400), "items[0].seconds is 1000000000000"),
    ],
)
def test_an_eval_run_that_cannot_be_shown_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    run = _edited(write_eval_run(tmp_path / "run"), edit)
    assert run_command("report", run) == 3
    told = capsys.readouterr().err
    assert told.startswith(f"error: {run}")
    assert message in told


def test_a_kernels_run_that_cannot_be_shown_or_compared_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = write_run(tmp_path / "sound", records()[:1])
    run = _edited(write_run(tmp_path / "run", records()[:1]), lambda r: r["ceilings"].update(flops_per_s="fast"))
    assert run_command("report", run) == 3
    assert f"{run} holds what cannot be shown (UndefinedError: " in capsys.readouterr().err
    odd = _edited(write_run(tmp_path / "odd", records()[:1]), lambda r: r.update(case_hashes=[1]))
    assert run_command("report", sound, odd) == 3
    assert f"{sound} or {odd} holds what cannot be shown" in capsys.readouterr().err
