"""report.html of an eval run: deployable speedup first, every figure reckoned from the items, two runs compared."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_runs import CPU, HOSTILE, MANIFEST, broken, eval_items, item, records, write_eval_run, write_run

from fastkernels.cli import main
from fastkernels.cli.eval_table import eval_tables
from fastkernels.errors import RunFolderError
from fastkernels.report.eval_compare import compare_evals
from fastkernels.report.eval_figures import FARTHEST, place
from fastkernels.report.eval_page import anchors, render_eval
from fastkernels.report.eval_view import item_views, set_scores
from fastkernels.report.figures import TIMES
from fastkernels.report.load import load_results
from fastkernels.report.publish import publish
from fastkernels.scoring.deployable import deployable
from fastkernels.scoring.macroeval import macroeval
from fastkernels.scoring.scores import items_of, subset_items_of


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return load_results(write_eval_run(tmp_path_factory.mktemp("evals") / "full"))


@pytest.fixture(scope="module")
def text(results: dict[str, Any]) -> str:
    return render_eval(results)


def plots(text: str) -> dict[str, Any]:
    found = re.search(r'id="plots">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def test_the_page_begins_with_deployable_speedup_beside_validity(text: str, results: dict[str, Any]) -> None:
    header = text.partition("</header>")[0].partition("<body>")[2]
    for items in items_of(results).values():
        d = deployable(items)
        for figure in (f"{d.speedup:.3f}{TIMES}", f"[{d.low:.3f}, {d.high:.3f}]", f"{d.num_valid}/{d.num_items}"):
            assert figure in header
    assert "Score" not in header
    part = deployable(subset_items_of(results)["fragile"])
    assert f"With the ops at fault left out: {part.speedup:.3f}{TIMES}" in header


def test_macroeval_stands_with_its_parts_at_three_lambdas(text: str, results: dict[str, Any]) -> None:
    section = text.partition('id="macroeval"')[2].partition('id="items"')[0]
    for items in items_of(results).values():
        for blend in (0.0, 0.5, 1.0):
            m = macroeval(items, blend)
            assert f"<b>{m.score:.3f}</b>" in section
            assert f"{m.speedup:.3f}{TIMES}" in section
    for family in ("language", "embedding", "image", "speech"):
        assert f'<th scope="row">{family}</th>' in section


def test_the_part_without_the_ops_at_fault_has_a_score_of_its_own(text: str, results: dict[str, Any]) -> None:
    """At each lambda, below the whole set's; a set that broke no model has none."""
    section = text.partition('id="macroeval"')[2].partition("</table>")[0]
    rows = [row for row in section.split("<tr")[1:] if "without the ops at fault" in row]
    part = subset_items_of(results)["fragile"]
    assert len(rows) == 3
    for row, blend in zip(rows, (0.0, 0.5, 1.0), strict=True):
        assert '<th scope="row">fragile<small' in row
        assert f"<b>{macroeval(part, blend).score:.3f}</b>" in row
    assert macroeval(part).score > macroeval(items_of(results)["fragile"]).score
    older = {name: value for name, value in results.items() if name != "subset_scores"}
    assert render_eval(older) == text


def test_the_terminal_shows_the_part_below_its_set(results: dict[str, Any]) -> None:
    deployed, macro, *_ = eval_tables(results)
    names = ["fast", "fragile", "fragile, without the ops at fault"]
    assert list(deployed.columns[0].cells) == list(macro.columns[0].cells) == names
    part = subset_items_of(results)["fragile"]
    assert list(deployed.columns[1].cells)[2] == f"[bold]{deployable(part).speedup:.3f}[/]"
    assert list(macro.columns[1].cells)[2] == f"{macroeval(part).score:.3f}"
    older = {name: value for name, value in results.items() if name != "subset_scores"}
    assert list(eval_tables(older)[0].columns[0].cells) == names[:2]


def test_every_item_has_its_outcome_reason_and_ops(text: str, results: dict[str, Any]) -> None:
    rows = re.findall(r"<tr data-verdict=.*?</tr>", text, re.DOTALL)
    assert len(rows) == len(results["items"])
    crashed = next(r for r in rows if "CRASH" in r)
    assert "at fault: moe_sum" in crashed
    assert "1 of 2" in crashed
    assert sum('data-label="Speed"' in row for row in rows) == 5  # what is not valid has no verdict of speed
    assert "Found in" not in text
    assert "8 of 1 GPUs" in text


def test_the_forest_draws_measured_items_and_tells_what_is_not_valid(text: str, results: dict[str, Any]) -> None:
    drawn = {trace["name"]: trace["x"] for trace in plots(text)["speedups"]["data"]}
    views = [v for v in item_views(results) if v.speedup]
    assert sorted(x for name in ("WIN", "TIE", "LOSS") for x in drawn[name]) == pytest.approx(
        sorted(v.speedup.ratio for v in views if v.is_valid and v.speedup), rel=1e-4
    )
    assert drawn["not valid"] == pytest.approx(
        [v.speedup.ratio for v in views if not v.is_valid and v.speedup], rel=1e-4
    )
    assert len(drawn["throughput"]) == len(drawn["latency"]) == len(views)


def test_discrepancies_lie_between_good_and_bad(results: dict[str, Any]) -> None:
    view = item_views(results)[0]
    good, bad = view.item.thresholds.good, view.item.thresholds.bad
    assert place(view, 0.0) == -0.25
    assert place(view, good) == 0
    assert place(view, (good + bad) / 2) == pytest.approx(0.5)
    assert place(view, bad) == pytest.approx(1)
    assert place(view, 99.0) == place(view, float("nan")) == FARTHEST


def test_the_sweep_scales_every_tolerance(text: str, results: dict[str, Any]) -> None:
    (trace, _) = plots(text)["sensitivity"]["data"]
    assert trace["x"] == [0.25, 0.5, 1, 2, 5]
    sweep = set_scores(results)["fast"]["sensitivity"]
    assert trace["y"] == pytest.approx([100 * s["coverage_macro"] for s in sweep.values()], rel=1e-4)


def test_the_command_can_be_typed(text: str) -> None:
    assert "fastkernels eval few --candidates fast --candidates fragile --device cpu --restarts 3" in text


def test_hostile_text_stays_text(text: str) -> None:
    assert "<script>window.owned" not in text
    assert HOSTILE.split("<img")[0] not in text
    assert "&lt;/script&gt;" in text


def test_what_a_process_tells_of_its_replacements_breaks_no_page(tmp_path: Path) -> None:
    odd = {"op": HOSTILE, "set": [], "status": {"a": 1}, "num_calls": "many", "rank": None, "error": [HOSTILE]}
    run = write_eval_run(tmp_path / "run", [item("tiny-llama", "language", "s", replacements=[odd, odd])])
    page = render_eval(load_results(run))
    assert "<script>window.owned" not in page
    assert "0 of 1" in page


def test_names_alike_have_anchors_of_their_own(tmp_path: Path) -> None:
    found = [item("a b", "language", "s"), item("a_b", "language", "s"), item("a/b", "language", "s")]
    views = item_views(load_results(write_eval_run(tmp_path / "run", found)))
    assert len(set(anchors(views))) == 3


@pytest.mark.parametrize("found", [[], [broken("tiny-llama", "language", "only", "INVALID", "CRASH")]])
def test_runs_without_a_measured_item_have_a_page(tmp_path: Path, found: list[Any]) -> None:
    run = write_eval_run(tmp_path / "run", found)
    page = render_eval(load_results(run))
    assert "speedups" not in plots(page)
    assert ("No item had been measured" in page) == (not found)


def test_an_unfinished_run_shows_what_it_has(tmp_path: Path) -> None:
    run = write_eval_run(tmp_path / "run", is_finished=False)
    path = publish(run, is_tracked=False)
    assert "This run was not finished" in path.read_text()


def test_a_run_that_was_interrupted_marks_its_items(tmp_path: Path) -> None:
    run = write_eval_run(tmp_path / "run", [item("tiny-llama", "language", "s", is_complete=False)])
    assert "not complete" in render_eval(load_results(run))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eval_schema_version": 7}, "eval schema version 7"),
        ({"items": {}}, "'items' is not a list"),
        ({"sets": [{"name": "x"}]}, r"sets\[0\] lacks sha256"),
        ({"items": [{"item": "x"}]}, r"items\[0\] lacks model"),
    ],
)
def test_damaged_results_are_one_clear_error(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    run = write_eval_run(tmp_path / "run", eval_items()[:1])
    data = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(RunFolderError, match=message):
        load_results(run)


@pytest.mark.parametrize(("seconds", "message"), [(0.0, r"has a time of 0\.0 s"), (10**400, "int too large")])
def test_times_that_cannot_be_are_one_clear_error(tmp_path: Path, seconds: float, message: str) -> None:
    odd = item("tiny-llama", "language", "s")
    odd.passes[0].candidate_s[0] = seconds
    with pytest.raises(RunFolderError, match=message):
        load_results(write_eval_run(tmp_path / "run", [odd], scores={}))


def later() -> list[Any]:
    """The first run's items after a change: one broke, one was mended, one became faster, one is new."""
    found = {(i.model, i.implementation): i for i in eval_items()}
    return [
        item("tiny-llama", "language", "fast", 1.6),
        broken("tiny-mixtral", "language", "fast", "INVALID", "CRASH", message="illegal access"),
        found["tiny-dinov3", "fast"],
        item("tiny-whisper", "speech", "fast", 1.25),
        item("tiny-yolov10", "detection", "fast", 1.1),
        found["tiny-dinov3", "fragile"],
    ]


def test_two_runs_are_compared_item_by_item(tmp_path: Path, results: dict[str, Any]) -> None:
    comparison = compare_evals(results, load_results(write_eval_run(tmp_path / "later", later())))
    changes = {(c.op, c.implementation): c for c in comparison.changes}
    words = {key[0].partition("-bfloat16")[0]: c.change for key, c in changes.items() if key[1] == "fast"}
    assert words == {
        "tiny-llama": "faster", "tiny-mixtral": "no longer passes", "tiny-dinov3": "same", "tiny-sdxl": "gone",
        "tiny-whisper": "now passes", "tiny-gpt-oss": "gone", "tiny-yolov10": "new",
    }  # fmt: skip
    assert changes["tiny-llama-bfloat16", "fast"].ratio == pytest.approx((1.6 * 1.3 / (1.3 * 1.15)) ** 0.5, rel=0.02)
    assert changes["tiny-dinov3-bfloat16", "fragile"].change == "same"
    assert comparison.warnings == []


def run(words: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["report", *words])
    return int(ended.value.code or 0)


def test_the_command_shows_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (str(write_eval_run(tmp_path / name, found)) for name, found in (("a", None), ("b", later())))
    assert run([first]) == 0
    out = capsys.readouterr().out
    assert "deployable" in out
    assert "NEVER_CALLED" in out
    assert (tmp_path / "a" / "report.html").is_file()
    assert run([first, second]) == 0
    assert "no longer passes" in capsys.readouterr().out
    page = (tmp_path / "b" / "compare.html").read_text()
    assert "INVALID" in page
    assert "does not know" not in page


def test_runs_on_other_hardware_are_refused_unless_forced_and_then_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = str(write_eval_run(tmp_path / "a"))
    second = str(write_eval_run(tmp_path / "b", environment={**CPU, "cpu": "Another Processor"}))
    assert run([first, second]) == 2
    assert "Another Processor with 8 cores: their times do not compare" in " ".join(capsys.readouterr().err.split())
    assert run([first, second, "--force"]) == 0
    assert "Different hardware" in capsys.readouterr().out
    assert "Different hardware" in (tmp_path / "b" / "compare.html").read_text()


def test_runs_of_another_kind_or_manifest_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = str(write_eval_run(tmp_path / "a"))
    kernels = str(write_run(tmp_path / "k", records()[:1], **CPU))
    assert run([first, kernels]) == 2
    assert "a run of eval" in capsys.readouterr().err
    other = str(write_eval_run(tmp_path / "b", manifest={**MANIFEST, "version": "2027.01"}))
    assert run([first, other]) == 2
    assert "manifest 2026.11" in capsys.readouterr().err
    assert run([first, other, "--force"]) == 0
    sha = MANIFEST["sha256"][:12]
    assert f"The manifest was 2026.11 (SHA-256 {sha}) and is 2027.01 (SHA-256 {sha})" in capsys.readouterr().out


def test_two_manifests_of_one_version_are_told_apart_by_their_content(tmp_path: Path) -> None:
    """A file that was altered by hand, or is of a checkout whose version was not raised."""
    runs = [write_eval_run(tmp_path / sha[:2], manifest={**MANIFEST, "sha256": sha}) for sha in ("ab" * 32, "cd" * 32)]
    (warning,) = compare_evals(*map(load_results, runs)).warnings
    assert warning.startswith("The manifest was 2026.11 (SHA-256 abababababab) and is 2026.11 (SHA-256 cdcdcdcdcdcd)")
