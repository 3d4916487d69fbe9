"""MLflow: a parent per sweep, a child per judgement, lineage by hash; publishing again changes no count."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from report_runs import record as make_record
from report_runs import records, timing, write_run

from fastkernels.harness.verdict import Verdict
from fastkernels.report.load import load_results
from fastkernels.report.publish import publish

pytest.importorskip("mlflow", reason="needs fastkernels[track]")
pytest.importorskip("sqlalchemy", reason="needs fastkernels[track]")

from mlflow import MlflowClient
from mlflow.entities import Run

from fastkernels.report.e2e_track import log_e2e
from fastkernels.report.track import EXPERIMENT, log_run, requoted, unquoted

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own, of its libraries


def runs(uri: str) -> list[Run]:
    client = MlflowClient(uri)
    return client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id], max_results=1000)


def role(uri: str, name: str) -> list[Run]:
    return [run for run in runs(uri) if run.data.tags["fastkernels.role"] == name]


def child(uri: str, op: str, set_name: str) -> Run:
    tags = {"op": op, "set": set_name}
    found = [r for r in role(uri, "judgement") if tags.items() <= r.data.tags.items()]
    assert len(found) == 1
    return found[0]


def log(path: Path, uri: str, found: list[Any] | None = None, created: str | None = None) -> Path:
    run = write_run(path, found)
    if created:
        for name in ("run.json", "results.json"):
            data = json.loads((run / name).read_text())
            (run / name).write_text(json.dumps({**data, "created": created}))
    log_run(run, load_results(run), uri)
    return run


def test_a_sweep_is_a_parent_with_a_child_for_each_judgement(tmp_path: Path, uri: str) -> None:
    log(tmp_path / "sweep", uri)
    (parent,) = role(uri, "sweep")
    children = role(uri, "judgement")
    assert len(children) == len(records())
    assert {c.data.tags["mlflow.parentRunId"] for c in children} == {parent.info.run_id}
    assert parent.data.metrics["num_judged"] == len(records())
    assert parent.data.metrics["num_passed"] == 5
    assert parent.data.params["hardware"] == "NVIDIA H200"
    assert parent.info.status == "FINISHED"


def test_a_child_holds_the_figures_of_its_record(tmp_path: Path, uri: str) -> None:
    log(tmp_path / "sweep", uri)
    run = child(uri, "rms_norm", "fast")
    history = MlflowClient(uri).get_metric_history(run.info.run_id, "speedup")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [(0, 1.62), (1, 1.31), (2, 1.004)]
    assert run.data.metrics["passed"] == 1
    assert run.data.metrics["roofline_share"] == 0.875
    assert run.data.metrics["max_error"] == pytest.approx(7.25e-3 * 5 / 3)
    assert run.data.tags["verdict"] == "PASSED"
    assert run.data.tags["speed"] == "WIN, WIN, TIE"
    expected = {"op": "rms_norm", "level": "1", "set": "fast", "device": "cuda", "dtype": "bfloat16"}
    assert expected.items() <= run.data.params.items()
    assert run.data.params["source_sha256"] == run.data.tags["source_sha256"]
    assert "x[17, 4096]" in run.data.params["shapes"]


def test_what_did_not_pass_has_no_speed(tmp_path: Path, uri: str) -> None:
    log(tmp_path / "sweep", uri)
    run = child(uri, "rotary_embedding", "cache")
    assert run.data.tags["verdict"] == Verdict.CHEATING.value
    assert run.data.metrics["passed"] == 0
    assert "speedup" not in run.data.metrics


def test_source_results_and_report_are_artifacts(tmp_path: Path, uri: str) -> None:
    run = write_run(tmp_path / "sweep", records()[:1])
    publish(run, mlflow_uri=uri)
    client = MlflowClient(uri)
    (parent,) = role(uri, "sweep")
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert names == {"run.json", "results.json", "report.html"}
    judged = child(uri, "rms_norm", "fast")
    path = client.download_artifacts(judged.info.run_id, "source/rms_norm.py", str(tmp_path))
    assert Path(path).read_text() == records()[0].source


def test_publishing_again_updates_and_adds_nothing(tmp_path: Path, uri: str) -> None:
    run = write_run(tmp_path / "sweep", records()[:2], is_finished=False)
    log_run(run, load_results(run), uri)
    first = {r.info.run_id for r in runs(uri)}
    assert role(uri, "sweep")[0].info.status == "KILLED"
    write_more = write_run(tmp_path / "other", records()[2:3])
    for path in (write_more / "ops").iterdir():
        (run / "ops" / path.name).write_bytes(path.read_bytes())
    for _ in range(2):
        log_run(run, {**load_results(run), "status": "finished"}, uri)
    assert len(runs(uri)) == len(first) + 1
    assert first < {r.info.run_id for r in runs(uri)}
    assert role(uri, "sweep")[0].info.status == "FINISHED"
    history = MlflowClient(uri).get_metric_history(child(uri, "rms_norm", "fast").info.run_id, "passed")
    assert len(history) == 1


def test_publishing_again_shows_the_figures_of_now_where_they_fell(tmp_path: Path, uri: str) -> None:
    run = log(tmp_path / "sweep", uri, [record for record in records() if record.implementation == "fast"][:2])
    results = load_results(run)
    judged = next(r for r in results["ops"] if r["op"] == "rms_norm")
    for timed in judged["timings"]:
        timed.update(ratio=0.8, low=0.7, high=0.9)
    failed = next(r for r in results["ops"] if r["op"] == "silu_and_mul")
    failed.update(verdict=Verdict.INCORRECT_NUMERICAL.value)
    log_run(run, results, uri)
    assert role(uri, "sweep")[0].data.metrics["num_passed"] == 1
    found = child(uri, "rms_norm", "fast").data.metrics
    assert (found["speedup"], found["speedup_low"], found["speedup_high"]) == (0.8, 0.7, 0.9)
    found = child(uri, "silu_and_mul", "fast").data.metrics
    assert found["passed"] == 0
    assert math.isnan(found["speedup"])


def test_a_side_of_an_end_to_end_run_shows_the_figures_of_now(tmp_path: Path, uri: str) -> None:
    def results(requests_per_s: float, **summary: float) -> dict[str, Any]:
        repeat = {"repeat": 0, "digest": "ab"}
        side = {
            "name": "fast", "candidates": [], "startup_seconds": 1.0, "repeats": [repeat], "is_complete": True,
            "summary": {"requests_per_s": requests_per_s, **summary}, "engine_summary": {},
        }  # fmt: skip
        run = {"run_id": "run", "created": "2026-01-01T00:00:00+00:00", "environment": {}, "request": {}}
        return {**run, "sides": [side], "status": "finished"}

    log_e2e(tmp_path, results(9.0, output_tokens_per_s=50.0), uri)
    log_e2e(tmp_path, results(7.0), uri)
    (side,) = role(uri, "side")
    assert side.data.metrics["requests_per_s"] == 7.0
    assert math.isnan(side.data.metrics["output_tokens_per_s"])


def test_names_with_quotes_are_found_again(tmp_path: Path, uri: str) -> None:
    odd = [make_record("embedding", 'it\'s "odd" `here`', timings=[timing(1.0)])]
    run = log(tmp_path / "o'clock", uri, odd)
    log_run(run, load_results(run), uri)
    assert len(runs(uri)) == 2


@pytest.mark.parametrize("value", ["it's", "it_s", "it%27s", "it%2527s", "%", "'%25'", "é 100 %"])
def test_a_tag_gives_its_value_back(value: str) -> None:
    assert "'" not in unquoted(value)
    assert requoted(unquoted(value)) == value


def test_lineage_is_the_source_that_was_judged_before(tmp_path: Path, uri: str) -> None:
    days = [f"2026-01-0{day}T00:00:00+00:00" for day in (1, 2, 3)]
    for day, sha in zip(days, ("a" * 64, "b" * 64, "b" * 64), strict=True):
        log(tmp_path / day[:10], uri, [make_record("linear", "mine", source_sha256=sha)], day)
    found = {r.info.start_time: r.data.tags for r in role(uri, "judgement")}
    parents = [found[when].get("parent_sha256") for when in sorted(found)]
    assert parents == [None, "a" * 64, "a" * 64]


def test_another_set_is_no_ancestor(tmp_path: Path, uri: str) -> None:
    log(tmp_path / "one", uri, [make_record("linear", "theirs")], "2026-01-01T00:00:00+00:00")
    log(tmp_path / "two", uri, [make_record("linear", "mine")], "2026-01-02T00:00:00+00:00")
    assert "parent_sha256" not in child(uri, "linear", "mine").data.tags


def test_a_parent_named_in_the_source_goes_first(tmp_path: Path, uri: str) -> None:
    log(tmp_path / "one", uri, [make_record("linear", "mine")], "2026-01-01T00:00:00+00:00")
    source = f"import torch\n# parent: {'c' * 64}\n"
    changed = make_record("linear", "mine", source=source, source_sha256="d" * 64)
    log(tmp_path / "two", uri, [changed], "2026-01-02T00:00:00+00:00")
    tags = [r.data.tags for r in role(uri, "judgement") if r.data.tags["source_sha256"] == "d" * 64]
    assert [t["parent_sha256"] for t in tags] == ["c" * 64]


@pytest.mark.parametrize("uri_text", ["sqlite:////proc/none/mlflow.db", "nonsense://host", "http://127.0.0.1:9"])
def test_a_store_that_fails_is_one_warning_and_the_report_stands(
    tmp_path: Path, uri_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "sweep", records()[:1])
    started = time.monotonic()
    path = publish(run, mlflow_uri=uri_text)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("warning:") == 1
    assert "MLflow did not take the run" in err
    assert path.exists()
    assert time.monotonic() - started < 30


_PROGRAM = """
import socket, sys
from pathlib import Path
def refuse(self, address, *more):
    print("NETWORK", address)
    raise OSError("no network here")
socket.socket.connect = refuse
socket.getaddrinfo = lambda *a, **k: refuse(None, a)
from fastkernels.report.publish import publish
publish(Path(sys.argv[1]))
"""


def test_first_use_is_silent_stays_at_home_and_asks_no_network(tmp_path: Path) -> None:
    run = write_run(tmp_path / "sweep", records()[:1])
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "FASTKERNELS_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", _PROGRAM, str(run)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")
    assert {path.name for path in home.iterdir()} == {"mlflow.db", "mlflow-artifacts"}
    assert {path.name for path in tmp_path.iterdir()} == {"sweep", "home"}
