"""Lineage is read from MLflow's tags, and eval runs stand there above the kernels' runs of the same sets."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, eval_items, eval_sets, item, records, timing, write_eval_run, write_run
from report_runs import record as make_record

from fastkernels.cli import main
from fastkernels.errors import EnvironmentProblem, UnknownNameError, UsageError
from fastkernels.harness.verdict import Verdict
from fastkernels.report.load import load_results
from fastkernels.report.publish import publish

pytest.importorskip("mlflow", reason="needs fastkernels[track]")
pytest.importorskip("sqlalchemy", reason="needs fastkernels[track]")

from mlflow import MlflowClient
from mlflow.entities import Run

from fastkernels.report.eval_track import log_eval
from fastkernels.report.lineage import Judged, Kernel, find_lineage, in_tree_order, linked
from fastkernels.report.lineage_page import render_lineage
from fastkernels.report.track import EXPERIMENT, log_run

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own, of its libraries


def judge(path: Path, uri: str, sha: str, speedup: float | None, day: int, parent: str = "", **changed: Any) -> None:
    """One judgement of linear in MLflow. sha: of one letter."""
    source = f"# parent: {parent}\n" if parent else "x = 1\n"
    given = {"source": source, "source_sha256": sha * 64, **changed.pop("record", {})}
    if speedup is None:
        record = make_record("linear", "mine", Verdict.INCORRECT_NUMERICAL, **given)
    else:
        record = make_record("linear", "mine", timings=[timing(speedup), timing(1.1 * speedup, "x[1, 64]")], **given)
    run = write_run(path / f"{day}-{sha}", [record], **changed)
    for name in ("run.json", "results.json"):
        data = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps({**data, "created": f"2026-01-{day:02d}T00:00:00+00:00"}))
    log_run(run, load_results(run), uri)


def chain(path: Path, uri: str) -> None:
    judge(path, uri, "a", 1.0, 1)
    judge(path, uri, "b", 1.2, 2)
    judge(path, uri, "c", None, 3, parent="b" * 64)
    judge(path, uri, "d", 1.5, 4, parent="b" * 12)
    judge(path, uri, "d", 1.6, 5, parent="b" * 12)
    judge(path, uri, "e", 0.8, 6, parent="9" * 64)


@pytest.fixture(scope="module")
def chained(template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with the chain, to be looked at."""
    folder = tmp_path_factory.mktemp("chained")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    (folder / "mlflow.db").write_bytes(template.read_bytes())
    chain(folder, uri)
    return uri


def test_sources_hang_under_what_they_came_from(chained: str) -> None:
    found = find_lineage("Linear", chained)
    assert found.op == "linear"
    assert [k.sha256[0] for k in found.kernels] == ["a", "b", "c", "d", "e"]
    assert [k.sha256[0] for k in found.roots] == ["a", "e"]
    assert [(k.sha256[0], depth) for k, depth in in_tree_order(found.roots)] == [
        ("a", 0), ("b", 0), ("c", 1), ("d", 1), ("e", 0),
    ]  # fmt: skip
    assert found.roots[1].parent == "9" * 64


def test_a_judgement_has_the_mean_of_its_timed_cases_with_an_interval(chained: str) -> None:
    kernels = {k.sha256[0]: k for k in find_lineage("linear", chained).kernels}
    twice = kernels["d"].judged
    assert [j.when.day for j in twice] == [4, 5]
    assert twice[0].speedup is not None
    assert math.exp(twice[0].speedup.centre) == pytest.approx(1.5 * 1.1**0.5)
    assert twice[0].speedup.down == pytest.approx(math.log(1.03) / 2**0.5)
    assert twice[0].num_cases == 2
    assert kernels["d"].best is twice[1]
    assert (kernels["c"].judged[0].speedup, kernels["c"].judged[0].verdict) == (None, "INCORRECT_NUMERICAL")
    assert kernels["c"].best is None
    assert twice[0].hardware == "NVIDIA H200"


def test_a_source_judged_anew_has_the_speedup_of_now_and_none_once_it_fails(tmp_path: Path, uri: str) -> None:
    judge(tmp_path, uri, "a", 1.5, 1)
    results = load_results(tmp_path / "1-a")
    timings = results["ops"][0]["timings"]
    timings[0].update(ratio=0.8, low=0.78, high=0.82)
    del timings[1]
    log_run(tmp_path / "1-a", results, uri)
    (judged,) = find_lineage("linear", uri).kernels[0].judged
    assert judged.speedup is not None
    assert (judged.num_cases, math.exp(judged.speedup.centre)) == (1, pytest.approx(0.8))
    results["ops"][0]["verdict"] = Verdict.INCORRECT_NUMERICAL.value
    log_run(tmp_path / "1-a", results, uri)
    (found,) = find_lineage("linear", uri).kernels
    assert (found.judged[0].verdict, found.judged[0].speedup, found.best) == ("INCORRECT_NUMERICAL", None, None)


def test_sets_whose_names_differ_by_a_quote_keep_apart(tmp_path: Path, uri: str) -> None:
    names = {"it's": 1.5, "it_s": 0.5, "it%27s": 0.8}
    found = [make_record("linear", n, timings=[timing(s)], source_sha256="a" * 64) for n, s in names.items()]
    log_run(tmp_path, load_results(write_run(tmp_path / "run", found)), uri)
    kernels = find_lineage("linear", uri).kernels
    speedups = {k.implementation: math.exp(j.speedup.centre) for k in kernels for j in k.judged if j.speedup}
    assert speedups == pytest.approx(names)


def kernel(sha: str, parent: str | None, name: str = "mine") -> Kernel:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    return Kernel(sha * 16, name, parent and parent * 16, [Judged(when, "PASSED", None, 0, "", "")])


def test_a_circle_of_parents_is_cut_at_its_oldest() -> None:
    kernels = [kernel("a", "c"), kernel("b", "a"), kernel("c", "b"), kernel("d", "c"), kernel("e", "e")]
    roots = linked(kernels)
    assert [k.sha256[0] for k in roots] == ["a", "e"]
    assert [k.sha256[0] for k, _ in in_tree_order(roots)] == ["a", "b", "c", "d", "e"]


def test_a_parent_is_sought_in_the_same_set_first() -> None:
    theirs, mine = kernel("a", None, "theirs"), kernel("a", None)
    child = kernel("b", "a")
    assert linked([theirs, mine, child]) == [theirs, mine]
    assert mine.children == [child]


def test_a_long_chain_stays_narrow_and_breaks_nothing() -> None:
    names = [f"{number:08d}" for number in range(1000)]
    when = datetime(2026, 1, 1, tzinfo=UTC)
    judged = [Judged(when, "PASSED", None, 0, "", "")]
    kernels = [Kernel(n, "mine", names[i - 1] if i else None, judged) for i, n in enumerate(names)]
    order = in_tree_order(linked(kernels))
    assert [k.sha256 for k, _ in order] == names
    assert {depth for _, depth in order} == {0}


def test_the_page_draws_every_judgement_and_escapes_names(tmp_path: Path, chained: str, uri: str) -> None:
    Path(uri.removeprefix("sqlite:///")).write_bytes(Path(chained.removeprefix("sqlite:///")).read_bytes())
    judge(tmp_path, uri, "f", 1.1, 7, record={"implementation": HOSTILE[:60].replace("/", "|")})
    text = render_lineage(find_lineage("linear", uri))
    found = re.search(r'id="plots">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    traces = {t["name"]: t for t in json.loads(found.group(1))["lineage"]["data"] if t.get("name")}
    assert len(traces["passed"]["x"]) == 6
    assert traces["no speed"]["text"] == ["3"]
    assert "<script>window" not in text
    assert text.count("not judged here") == 1


def run(words: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["lineage", *words])
    return int(ended.value.code or 0)


def test_the_command_prints_a_tree_and_writes_a_page(
    tmp_path: Path, chained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "pages" / "linear.html"
    assert run(["linear", "--mlflow-uri", chained, "--out", str(page)]) == 0
    out = capsys.readouterr().out
    assert "1. aaaaaaaaaaaa (mine)" in out
    assert "4. dddddddddddd (mine) from 2" in out
    assert "from 999999999999, not judged here" in out
    assert "1.573x [1.541, 1.606], 2 cases NVIDIA H200" in out
    assert page.is_file()
    assert run(["linear", "--mlflow-uri", chained, "--out", str(page), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kernels"][3]["judged"][1]["speedup"]["speedup"] == pytest.approx(1.6 * 1.1**0.5)


def test_judgements_on_other_hardware_are_said_not_to_compare(
    tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    judge(tmp_path, uri, "a", 1.0, 1)
    judge(tmp_path, uri, "b", 1.2, 2, gpu=None, cpu="A Processor")
    assert run(["linear", "--mlflow-uri", uri, "--out", str(tmp_path / "page.html")]) == 0
    assert "speedups do not compare" in capsys.readouterr().out
    assert "2 kinds of hardware" in (tmp_path / "page.html").read_text()


def test_what_is_not_there_is_one_message(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean"):
        find_lineage("rms_nrom", uri)
    with pytest.raises(UsageError, match="has no judgement of rms_norm"):
        find_lineage("rms_norm", uri)
    with pytest.raises(UsageError, match="There is no MLflow store"):
        find_lineage("rms_norm", f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "text.db").write_text("not a database " * 100)
    with pytest.raises(EnvironmentProblem, match="cannot be read"):
        find_lineage("rms_norm", f"sqlite:///{tmp_path / 'text.db'}")


def runs(uri: str, role: str) -> list[Run]:
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id], max_results=1000)
    return [r for r in found if r.data.tags["fastkernels.role"] == role]


def test_an_eval_run_is_a_parent_of_sets_and_a_set_of_items(tmp_path: Path, uri: str) -> None:
    path = write_eval_run(tmp_path / "eval")
    for _ in range(2):  # publishing again adds nothing
        publish(path, mlflow_uri=uri)
    (parent,) = runs(uri, "eval")
    sets = {r.data.tags["set"]: r for r in runs(uri, "eval_set")}
    items = runs(uri, "eval_item")
    assert set(sets) == {"fast", "fragile"}
    assert {r.data.tags["mlflow.parentRunId"] for r in sets.values()} == {parent.info.run_id}
    assert len(items) == len(eval_items())
    for child in items:
        assert child.data.tags["mlflow.parentRunId"] == sets[child.data.tags["set"]].info.run_id
    assert parent.data.params["manifest"] == "2026.11"
    assert {a.path for a in MlflowClient(uri).list_artifacts(parent.info.run_id)} == {
        "run.json", "results.json", "report.html",
    }  # fmt: skip


def test_runs_in_mlflow_hold_the_figures_of_the_report(tmp_path: Path, uri: str) -> None:
    path = write_eval_run(tmp_path / "eval")
    results = load_results(path)
    log_eval(path, results, uri)
    score = results["scores"]["fast"]
    fast = next(r for r in runs(uri, "eval_set") if r.data.tags["set"] == "fast")
    assert fast.data.metrics["deployable_speedup"] == score["deployable"]["speedup"]
    assert fast.data.metrics["score_1.0"] == score["macroeval"]["1.0"]["score"]
    crashed = next(r for r in runs(uri, "eval_item") if r.data.tags["reason"] == "CRASH")
    assert (crashed.data.metrics["valid"], crashed.data.tags["outcome"]) == (0, "INVALID")
    assert "speedup" not in crashed.data.metrics
    valid = next(r for r in runs(uri, "eval_item") if r.data.tags["outcome"] == "VALID")
    assert valid.data.metrics["speedup_low"] <= valid.data.metrics["speedup"] <= valid.data.metrics["speedup_high"]


def test_an_eval_run_shows_the_figures_of_now_where_they_fell(tmp_path: Path, uri: str) -> None:
    first = load_results(write_eval_run(tmp_path / "first"))
    log_eval(tmp_path, first, uri)
    slower = [replace(i, passes=item(i.model, i.family, "fast", 0.8).passes) for i in eval_items()[:2]]
    slower[1] = replace(slower[1], outcome="INVALID", reason="CRASH", passes=[], discrepancies=[], reference_noise=[])
    again = load_results(write_eval_run(tmp_path / "again", slower))
    log_eval(tmp_path, {**again, **{name: first[name] for name in ("run_id", "created")}}, uri)
    fast = next(r for r in runs(uri, "eval_set") if r.data.tags["set"] == "fast")
    assert fast.data.metrics["deployable_speedup"] == again["scores"]["fast"]["deployable"]["speedup"] < 1
    items = {r.data.tags["item"]: r.data for r in runs(uri, "eval_item") if r.data.tags["set"] == "fast"}
    assert items["tiny-llama-bfloat16"].metrics["speedup"] < 0.9
    crashed = items["tiny-mixtral-bfloat16"]
    assert (crashed.tags["outcome"], crashed.metrics["valid"]) == ("INVALID", 0)
    assert math.isnan(crashed.metrics["speedup"])


def kernels_run_of(path: Path, *sets: Any) -> Path:
    """As a sweep of these sets leaves it."""
    run = write_run(path, records()[:1])
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "sets": [asdict(s) for s in sets]}))
    return run


def test_a_kernels_run_of_the_same_content_nests_under_its_set(tmp_path: Path, uri: str) -> None:
    """Whichever is logged later finds the other."""
    fast, fragile = eval_sets(eval_items())
    publish(kernels_run_of(tmp_path / "early", fast), mlflow_uri=uri)
    assert "mlflow.parentRunId" not in runs(uri, "sweep")[0].data.tags
    publish(write_eval_run(tmp_path / "eval"), mlflow_uri=uri)
    publish(kernels_run_of(tmp_path / "late", fragile), mlflow_uri=uri)
    publish(kernels_run_of(tmp_path / "both", fast, fragile), mlflow_uri=uri)
    publish(kernels_run_of(tmp_path / "other", replace(fast, sha256="12" * 32)), mlflow_uri=uri)
    sets = {r.data.tags["set"]: r.info.run_id for r in runs(uri, "eval_set")}
    parents = {r.info.run_name: r.data.tags.get("mlflow.parentRunId") for r in runs(uri, "sweep")}
    assert parents == {"early": sets["fast"], "late": sets["fragile"], "both": None, "other": None}
