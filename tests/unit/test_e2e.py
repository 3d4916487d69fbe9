"""`fastkernels e2e` on the tiny model: offline, under load, with candidates, cut short."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastkernels.bench.e2e.offline import Side, Watcher
from fastkernels.bench.e2e.run import E2ERun, run_e2e
from fastkernels.bench.e2e.scenario import Scenario
from fastkernels.bench.e2e.serving import LoadPlan
from fastkernels.bench.run_folder import RunFolder
from fastkernels.cli import main
from fastkernels.cli.e2e import run_with_bar
from fastkernels.report.load import load_results
from fastkernels.server.local import running_server

TINY = ("--model", "tiny-llama", "--device", "cpu")
SMALL = ("--workload", "balanced", "--num-requests", "6", "--scale", "0.05")
DEMO = Path(__file__).parents[2] / "fastkernels" / "demo"


def e2e(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = 0
    try:
        main(["e2e", *map(str, words)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTKERNELS_HOME", str(tmp_path / "runs"))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an offline run of the baseline, which no test changes."""
    folder = tmp_path_factory.mktemp("ran") / "a"
    with pytest.raises(SystemExit) as stop:
        main(["e2e", *TINY, *SMALL, "--repeats", "2", "--out", str(folder), "--no-track"])
    assert not stop.value.code
    return folder


def test_offline_run_keeps_every_request_and_repeats_its_digests(
    ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = e2e(capsys, *TINY, *SMALL, "--repeats", "2", "--out", tmp_path / "b", "--no-track", "--json")
    assert code == 0
    first, second = (r["sides"][0] for r in (load_results(ran), json.loads(out)))
    assert [r["digest"] for r in first["repeats"]] == [r["digest"] for r in second["repeats"]]
    assert first["repeats"][0]["digest"] != first["repeats"][1]["digest"]
    repeat = first["repeats"][0]
    assert [(q["prompt_len"], q["output_len"]) for q in repeat["requests"]] == [(26, 6)] * 6
    assert repeat["token_times"][-1][1] == 36
    assert repeat["counters"]["num_generated_tokens"] == 36
    assert repeat["engine"]["prefix_hit_share"] == 0
    assert first["startup_seconds"] > first["engine"]["startup_seconds"] > 0
    assert load_results(tmp_path / "b")["sides"][0]["summary"]["duration_s"] > 0
    assert (tmp_path / "b" / "tokens-0.json").is_file()


def test_shared_prefixes_of_a_trace_hit_the_prefix_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All requests of the trace begin with one block: 32 tokens, two pages, once scaled."""
    words = (*TINY, "--workload", "mooncake_conv", "--num-requests", "20", "--scale", "0.0625", "--repeats", "1")
    options = ("--engine", "max_num_batched_tokens=512", "--out", tmp_path / "run", "--no-track", "--json")
    code, out, _ = e2e(capsys, *words, *options)
    assert code == 0
    side = json.loads(out)["sides"][0]
    assert side["engine_summary"]["prefix_hit_share"] > 0.02
    assert sum(q["num_cached_tokens"] >= 32 for q in side["repeats"][0]["requests"]) > 10


def test_a_right_candidate_says_the_baselines_tokens_and_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*TINY, *SMALL, "--repeats", "1", "--candidates", DEMO / "faster", "--out", tmp_path / "run")
    code, out, _ = e2e(capsys, *words)
    assert code == 0
    results = load_results(tmp_path / "run")
    (comparison,) = results["comparisons"]
    assert comparison["tokens"][0]["share_equal"] == 1.0
    assert comparison["speed"]["ratio"] > 0
    (line,) = results["sides"][1]["replacements"]
    assert (line["op"], line["status"]) == ("rms_norm", "REPLACED")
    assert line["num_calls"] > 0
    assert "REPLACED" in out
    html = (tmp_path / "run" / "report.html").read_text()
    assert "replacement-table" in html
    assert (tmp_path / "runs" / "mlflow.db").is_file()


def test_a_wrong_candidate_shows_where_its_tokens_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    candidate = tmp_path / "wrong" / "L1" / "rms_norm.py"
    candidate.parent.mkdir(parents=True)
    source = (DEMO / "faster" / "L1" / "rms_norm.py").read_text()
    assert source.count("self.weight, self.eps") == 2
    candidate.write_text(source.replace("self.weight, self.eps", "1 - self.weight, self.eps"))
    words = (*TINY, *SMALL, "--repeats", "1", "--candidates", tmp_path / "wrong", "--no-track", "--json")
    _, out, _ = e2e(capsys, *words)
    (comparison,) = json.loads(out)["comparisons"]
    assert comparison["tokens"][0]["share_equal"] < 0.5
    assert comparison["tokens"][0]["first_difference"] is not None
    assert comparison["has_equal_digests"] == [False]


def test_a_candidate_that_is_never_called_does_not_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub = tmp_path / "mine" / "L1" / "top_logprobs.py"
    stub.parent.mkdir(parents=True)
    stub.write_text(
        "from fastkernels.tasks.baseline.L1 import top_logprobs as baseline\n\n\n"
        "class TopLogprobs(baseline.TopLogprobs):\n    pass\n"
    )
    words = (*TINY, *SMALL, "--repeats", "1", "--candidates", tmp_path / "mine", "--no-track")
    code, out, err = e2e(capsys, *words, "--out", tmp_path / "run")
    assert code == 1
    assert "mine: top_logprobs is NEVER_CALLED" in err
    assert "NEVER_CALLED" in out
    assert "nothing replaced" in out
    (comparison,) = load_results(tmp_path / "run")["comparisons"]
    assert (comparison["speed"], comparison["latency"], comparison["has_replaced"]) == (None, {}, False)
    assert (
        "no replacement was called, so that both sides are the baseline" in (tmp_path / "run/report.html").read_text()
    )


@pytest.mark.slow
def test_a_broken_candidate_leaves_the_baseline_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "mine" / "L1" / "rms_norm.py"
    broken.parent.mkdir(parents=True)
    broken.write_text("import no_such_module\n")
    words = (*TINY, *SMALL, "--repeats", "1", "--candidates", tmp_path / "mine", "--out", tmp_path / "run")
    code, _, err = e2e(capsys, *words, "--no-track")
    assert code == 1
    assert "No module named 'no_such_module'" in err
    results = load_results(tmp_path / "run")
    assert results["status"] == "finished"
    assert [len(side["repeats"]) for side in results["sides"]] == [1, 0]
    assert "no_such_module" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("plan", [None, LoadPlan()], ids=["offline", "load"])
@pytest.mark.parametrize(
    ("device", "candidates", "is_eager"),
    [("cpu", (str(DEMO / "faster"),), True), ("cpu", (), False), ("cuda", (str(DEMO / "faster"),), False)],
)
def test_on_a_cpu_the_baseline_beside_candidates_is_not_compiled_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: LoadPlan | None, device: str, candidates: tuple[str, ...],
    is_eager: bool,
) -> None:  # fmt: skip
    given: list[tuple[str, dict[str, Any]]] = []

    def measure(scenario: Scenario, side: Side, *more: object) -> None:
        given.append((side.name, scenario.options))

    monkeypatch.setattr("fastkernels.bench.e2e.run.run_offline", measure)
    monkeypatch.setattr("fastkernels.bench.e2e.run.run_serving", measure)
    scenario = Scenario("tiny-llama", "balanced", 2, options={"device": device, "warm": "full"})
    run_e2e(E2ERun(scenario, candidates, plan=plan), RunFolder.create("e2e", {}, {}, tmp_path / "run"), Watcher())
    assert [name for name, _ in given] == ["baseline", "faster"][: 1 + len(candidates)]
    assert [options.get("enforce_eager", False) for _, options in given] == [is_eager] * len(given)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--workload", "balance"), 2, "Did you mean balanced"),
        (("--workload", "balanced", "--speedup", "2"), 2, "--speedup replays arrival times; balanced has none"),
        (("--workload", "azure_conv", "--speedup", "2", "--request-rate", "3"), 2, "give one"),
        (("--workload", "balanced", "--max-concurrency", "2"), 2, "give --request-rate or --server"),
        (("--workload", "balanced", "--request-rate", "0"), 2, "request_rate is 0.0"),
        (("--workload", "balanced", "--request-rate", "1", "--goodput", "ttft"), 2, "--goodput ttft is not one of"),
        (("--workload", "balanced", "--engine", "max_num_seqs"), 2, "is not NAME=VALUE"),
        (("--workload", "balanced", "--engine", "no_such=1"), 2, "The engine has no option 'no_such'"),
        (("--workload", "balanced", "--repeats", "0"), 2, "--repeats is 0"),
        (("--workload", "balanced", "--candidates", "no_such_set"), 2, "no_such_set"),
        (("--workload", "balanced", "--server", "http://x", "--candidates", "liger"), 2, "leave --server out"),
        (("--workload", "balanced", "--server", "127.0.0.1:1"), 2, "is not a URL"),
        (("--workload", "azure_conv", "--num-requests", "99999"), 2, "it has 1 to 19366"),
        (("--workload", "balanced", "--scale", "inf"), 2, "a finite factor above 0, got inf"),
        (("--workload", "azure_conv", "--scale", "inf"), 2, "a finite factor above 0, got inf"),
        (("--workload", "azure_conv", "--speedup", "0"), 2, "speedup is 0.0; it must be above 0"),
        (("--workload", "balanced", "--server", ""), 2, "is not a URL"),
        (("--workload", "balanced", "--seed", "-1"), 2, "--seed is -1; the least is 0"),
        (("--workload", "balanced", "--engine", "max_num_seqs=x"), 2, "max_num_seqs is 'x'; it is a whole number"),
        (("--workload", "balanced", "--engine", "page_size=true"), 2, "page_size is True; it is a whole number"),
        (("--workload", "balanced", "--engine", "enforce_eager=1"), 2, "enforce_eager is 1; it is true or false"),
        (("--workload", "balanced", "--engine", "warm=hot"), 2, "warm is 'hot'; it is lazy or full"),
        (("--workload", "balanced", "--out", __file__), 2, "cannot be a run folder: a part of the path is a file"),
    ],
)
def test_a_mistake_is_one_message_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, says: str
) -> None:
    got, out, err = e2e(capsys, *TINY, *words)
    assert (got, out) == (code, "")
    assert says in err
    assert err.count("error:") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("device", "workload", "num_requests", "wanted"),
    [("cuda:0", "batch32", None, 32), ("cpu", "batch32", None, 8), ("cuda", "balanced", 400, 100)],
)
def test_little_is_warmed_up_whole_where_graphs_are_captured(
    device: str, workload: str, num_requests: int | None, wanted: int
) -> None:
    scenario = Scenario("llama-3.1-8b", workload, num_requests)
    warmup, counted = scenario.warmup_requests(0.25, device), scenario.requests(0)
    assert len(warmup) == wanted
    assert warmup[0].prompt_token_ids != counted[0].prompt_token_ids


def test_a_log_has_a_line_for_each_stage_and_for_what_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def steps(run: E2ERun, folder: Any, watcher: Watcher) -> dict[str, Any]:
        for name, seconds in (("warm-up", 9), ("repeat 1 of 2", 25)):
            for second in range(seconds):
                now[0] += 1.0
                watcher.stage(name)
                watcher.progress(second, seconds)
        return {}

    now = [100.0]
    monkeypatch.setattr("fastkernels.cli.e2e.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("fastkernels.cli.e2e.run_e2e", steps)
    run_with_bar(E2ERun(Scenario("tiny-llama", "balanced", 2)), RunFolder(Path("nowhere")))
    log = capsys.readouterr().err.rstrip().splitlines()
    assert log == ["warm-up", "repeat 1 of 2", "repeat 1 of 2: 10 of 25 tokens", "repeat 1 of 2: 20 of 25 tokens"]


def check_load(side: dict[str, Any], num_requests: int) -> None:
    summary = side["summary"]
    assert (summary["num_completed"], summary["num_failed"]) == (num_requests, 0)
    requests = side["repeats"][0]["requests"]
    # A server that is faster than its reader sends all tokens in one piece: such an answer has no gaps.
    has_gaps = any(q["itl_s"] for repeat in side["repeats"] for q in repeat["requests"])
    assert (summary["itl"] is not None) == has_gaps
    for name in ("ttft", "itl", "e2e") if has_gaps else ("ttft", "e2e"):
        spread = summary[name]
        assert 0 <= spread["min"] <= spread["p50"] <= spread["p90"] <= spread["p99"] <= spread["max"]
    for q in requests:
        assert q["output_len"] == q["asked_len"]
        assert q["ttft_s"] + sum(q["itl_s"]) == pytest.approx(q["e2e_s"], abs=1e-4)


@pytest.mark.slow
def test_our_server_under_drawn_arrivals_with_a_candidate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*TINY, *SMALL, "--request-rate", "30", "--goodput", "e2e:60000", "--candidates", DEMO / "faster")
    options = ("--engine", "enforce_eager=true", "--out", tmp_path / "run", "--no-track")
    code, out, err = e2e(capsys, *words, *options)
    assert code == 0, err
    results = load_results(tmp_path / "run")
    for side in results["sides"]:
        check_load(side, 6)
        assert side["startup_seconds"] > 0
        assert side["engine_summary"]["num_preemptions"] == 0
        assert side["summary"]["goodput"]["num_good"] == 6
        assert side["repeats"][0]["counters"]["num_prompt_tokens"] == 6 * 26
        starts = [q["start_s"] for q in side["repeats"][0]["requests"]]
        assert starts == sorted(starts)
        assert 6 / 30 - 1e-3 <= starts[-1] < 6 / 30 + 2  # when it was sent: on a busy machine later than it was due
    (comparison,) = results["comparisons"]
    assert comparison["has_equal_digests"] == [True]
    assert set(comparison["latency"]) >= {"ttft", "e2e"}
    assert results["sides"][1]["replacements"][0]["status"] == "REPLACED"
    assert "TTFT" in out


@pytest.mark.slow
def test_any_server_by_url_replays_a_trace_faster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running_server("tiny-llama", "--device", "fake") as server:
        words = ("--workload", "azure_conv", "--num-requests", "20", "--scale", "0.02", "--speedup", "20")
        code, _, err = e2e(
            capsys, *TINY, *words, "--server", f"{server.url}/v1", "--out", tmp_path / "run", "--no-track"
        )
        assert code == 0, err
        results = load_results(tmp_path / "run")
        (side,) = results["sides"]
        assert side["name"] == server.url
        check_load(side, 20)
        gaps = [q["start_s"] for q in side["repeats"][0]["requests"]]
        assert 4.315 / 20 - 1e-3 <= gaps[1] < 4.315 - 1
        assert results["workload"]["license"] == "CC-BY-4.0"

        code, _, err = e2e(capsys, *TINY, *words, "--server", server.url, "--served-model-name", "other")
        assert code == 5
        assert "serves tiny-llama, not other" in err


@pytest.mark.slow
def test_interrupt_keeps_the_repeats_that_were_done(tmp_path: Path) -> None:
    words = [*TINY, *SMALL, "--repeats", "100000", "--out", str(tmp_path / "run"), "--no-track"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastkernels", "e2e", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    results = tmp_path / "run" / "results.json"
    end = time.monotonic() + 120
    while time.monotonic() < end and not (results.is_file() and len(_repeats(results)) >= 3):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Interrupted. What was written before is kept." in err
    assert json.loads(results.read_text())["status"] == "interrupted"
    assert len(_repeats(results)) >= 3
    assert "This run was not finished" in (tmp_path / "run" / "report.html").read_text()


def _repeats(path: Path) -> list[Any]:
    return json.loads(path.read_text())["sides"][0]["repeats"]


def test_report_shows_an_end_to_end_run_again(ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ran, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    with pytest.raises(SystemExit) as stop:
        main(["report", str(tmp_path / "run")])
    assert not stop.value.code
    assert "baseline" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()
    with pytest.raises(SystemExit) as stop:
        main(["report", str(tmp_path / "run"), str(tmp_path / "run")])
    assert not stop.value.code
    assert re.search(r"^0 of [1-9]\d* changed\.$", capsys.readouterr().out, re.MULTILINE)
