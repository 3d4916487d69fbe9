"""`fastkernels report RUN RUN2` of end-to-end runs: what moved, and runs that do not compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from e2e_runs import failed_side, load_side, offline_side, write_run

from fastkernels.bench.e2e.serving import LoadPlan
from fastkernels.cli import main
from fastkernels.errors import UsageError
from fastkernels.report.e2e_compare import FigureChange, compare_e2e
from fastkernels.report.load import load_results


def offline(path: Path, *speeds: float, num_repeats: int = 3) -> dict[str, Any]:
    sides = [offline_side(name, speed) for name, speed in zip(("baseline", "mine"), speeds, strict=False)]
    for side in sides:
        del side.repeats[num_repeats:]
    return load_results(write_run(path, sides, None))


def by_figure(before: dict[str, Any], after: dict[str, Any], side: str = "baseline") -> dict[str, FigureChange]:
    return {change.figure: change for change in compare_e2e(before, after).changes if change.side == side}


def run_command(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return int(left.value.code or 0)


def test_figures_that_moved_by_more_than_repeats_are_apart_are_better_or_worse(tmp_path: Path) -> None:
    """Repeats take 2.00, 2.05 and 2.10 s: 1.3 times as fast is apart from them, 1.03 is not."""
    slow, fast, near = (offline(tmp_path / name, s) for name, s in (("slow", 1.0), ("fast", 1.3), ("near", 1.03)))
    found = by_figure(slow, fast)
    assert found["Output tokens/s"].ratio == pytest.approx(1.3)
    assert found["Seconds"].ratio == pytest.approx(1.3)
    assert found["Seconds"].before_span == pytest.approx((2.0, 2.1))
    assert {found[name].change for name in ("Requests/s", "Output tokens/s", "Seconds")} == {"better"}
    back = by_figure(fast, slow)
    assert back["Seconds"].change == back["Requests/s"].change == "worse"
    assert back["Seconds"].ratio == pytest.approx(1 / 1.3)
    assert by_figure(slow, near)["Requests/s"].change == "same"
    assert not any(change.is_changed for change in compare_e2e(slow, slow).changes)
    assert found["Start-up s"].change == "not comparable"  # one start a run
    assert compare_e2e(slow, fast).equal_outputs == {"baseline": True}


def test_repeats_that_agree_to_a_hair_are_no_change(tmp_path: Path) -> None:
    before, after = offline(tmp_path / "before", 1.0), offline(tmp_path / "after", 1.0)
    for run, peak in ((before, 1_000_000_000), (after, 1_004_000_000)):
        for repeat in run["sides"][0]["repeats"]:
            repeat["peak_memory_bytes"] = peak
    assert by_figure(before, after)["Peak GB"].change == "same"
    for repeat in after["sides"][0]["repeats"]:
        repeat["peak_memory_bytes"] = 1_100_000_000
    assert by_figure(before, after)["Peak GB"].change == "worse"


def test_one_repeat_is_told_and_not_judged(tmp_path: Path) -> None:
    before, after = (offline(tmp_path / str(speed), speed, num_repeats=1) for speed in (1.0, 2.0))
    change = by_figure(before, after)["Requests/s"]
    assert (change.change, change.ratio) == ("not comparable", pytest.approx(2.0))


def test_sides_of_one_run_alone_are_new_or_gone(tmp_path: Path) -> None:
    one, two = offline(tmp_path / "one", 1.0), offline(tmp_path / "two", 1.0, 1.3)
    assert [c.change for c in compare_e2e(one, two).changes if c.side == "mine"] == ["new"]
    assert [c.change for c in compare_e2e(two, one).changes if c.side == "mine"] == ["gone"]


def test_latencies_under_load_are_compared_at_the_median_and_at_the_tail(tmp_path: Path) -> None:
    runs = [load_results(write_run(tmp_path / str(i), [load_side("baseline", i)], LoadPlan())) for i in (1, 2)]
    found = by_figure(*runs)
    values = [run["sides"][0]["repeats"][0]["summary"]["ttft"] for run in runs]
    assert (found["TTFT p99, ms"].before, found["TTFT p99, ms"].after) == (values[0]["p99"], values[1]["p99"])
    assert found["TPOT p50, ms"].ratio == pytest.approx(found["TPOT p50, ms"].before / found["TPOT p50, ms"].after)
    nothing = load_results(write_run(tmp_path / "failed", [failed_side("baseline", True)], LoadPlan()))
    assert {change.change for change in compare_e2e(runs[0], nothing).changes} == {"not comparable"}


def test_runs_of_other_work_do_not_compare_unless_forced(tmp_path: Path) -> None:
    one, other = offline(tmp_path / "one", 1.0), offline(tmp_path / "other", 1.0)
    other["workload"]["num_requests"] = 7
    other["request"]["model"] = "tiny-mixtral"
    with pytest.raises(UsageError, match=r"model was tiny-llama and is tiny-mixtral\..*num_requests was 40 and is 7\."):
        compare_e2e(one, other)
    assert "The workload's num_requests was 40 and is 7." in compare_e2e(one, other, is_forced=True).warnings
    tuned = offline(tmp_path / "tuned", 1.0)
    tuned["request"]["tp"] = 2
    assert compare_e2e(one, tuned).warnings == ["tp was None and is 2."]


def test_the_command_prints_writes_the_page_and_gives_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    offline(before, 1.0), offline(after, 1.3)
    assert run_command("report", before, after) == 0
    out = capsys.readouterr().out
    assert "Outputs of baseline: equal." in out
    assert "better" in out
    assert "1.300" in out
    assert (after / "compare.html").read_text().startswith("<!doctype html>")
    assert run_command("report", before, after, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["equal_outputs"] == {"baseline": True}
    assert {change["figure"] for change in found["changes"]} >= {"Requests/s", "Seconds"}


def test_a_run_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    offline(before, 1.0), offline(after, 1.0)
    path = after / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps({**results, "kind": "kernels", "ops": []}))
    assert run_command("report", before, after) == 2
    assert "a run of e2e" in capsys.readouterr().err
