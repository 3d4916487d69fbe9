"""`fastkernels e2e` of models that make no tokens: one pass and many, with candidates right and wrong; and mistakes."""

from __future__ import annotations

import asyncio
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastkernels.bench.e2e.http import Endpoint
from fastkernels.bench.e2e.load import Load, RequestRecord
from fastkernels.bench.e2e.metrics import pipeline_summary
from fastkernels.bench.e2e.offline import Side
from fastkernels.bench.e2e.outputs import KeptOutputs, OutputAgreement, compare_outputs, result_digest
from fastkernels.bench.e2e.routes import Embeddings, Images
from fastkernels.bench.e2e.run import comparisons, side_json
from fastkernels.bench.e2e.scenario import Scenario
from fastkernels.bench.e2e.serving import LoadPlan, _repeat
from fastkernels.bench.environment import environment
from fastkernels.cli import main
from fastkernels.cli.e2e_table import e2e_tables
from fastkernels.engine.pipeline import Pipeline
from fastkernels.errors import UsageError
from fastkernels.report.e2e_page import render_e2e
from fastkernels.report.e2e_track import side_metrics
from fastkernels.report.load import load_results

CPU = ("--device", "cpu", "--no-track")
DINO = ("--model", "tiny-dinov3", "--workload", "examples", *CPU)
DLRM = ("--model", "tiny-dlrmv2", "--workload", "examples", *CPU)
BGE = ("--model", "tiny-bge_m3", "--workload", "examples", *CPU)
SEED = 3
RELU = """
from torch import Tensor, nn


class ReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min={least})
"""
LINEAR = """
import torch
from torch import Tensor, nn


class Linear(nn.Module):
    def __init__(self, input_size: int, output_size: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(output_size, input_size))
        self.bias = nn.Parameter(torch.empty(output_size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = (x.double() @ self.weight.double().T).float()
        return y if self.bias is None else y + self.bias
"""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTKERNELS_HOME", str(tmp_path / "runs"))


def e2e(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = 0
    try:
        main(["e2e", *map(str, words)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def candidate(folder: Path, op: str, source: str) -> Path:
    path = folder / "mine" / "L1" / f"{op}.py"
    path.parent.mkdir(parents=True)
    path.write_text(source)
    return folder / "mine"


def direct_digests(pipeline: Pipeline, num: int, seed: int) -> list[str]:
    return [result_digest(result.tensors) for result in pipeline.run(pipeline.example_requests(num, seed))]


def check_page(page: str, *, is_iterative: bool) -> None:
    """The page's own words; the script of the plots names tokens in its comments."""
    body = page[page.index("<body") : page.index("<script", page.index("<body"))]
    assert not [word for word in ("oken", "TTFT", "Prefix", "Preemption", "peak concurrency") if word in body]
    assert all(word in body for word in ("Requests/s", "In the batch", "Preparation", "Digest of the results"))
    assert all(f'id="plot-{name}"' in body for name in ("batch", "alone", "prepare"))
    assert ("Steps/s" in body, 'id="plot-throughput"' in body) == (is_iterative, is_iterative)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "steps"), [("tiny-dlrmv2", 1), ("tiny-pi0", None)])
def test_every_request_is_timed_and_answers_as_the_pipeline_itself_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, steps: int | None
) -> None:
    words = ("--model", model, "--workload", "examples", "--num-requests", "5", "--repeats", "2", "--seed", str(SEED))
    code, out, err = e2e(capsys, *words, *CPU, "--out", tmp_path / "run")
    assert code == 0, err
    results = load_results(tmp_path / "run")
    (side,) = results["sides"]
    pipeline = Pipeline(model, device="cpu", seed=SEED)
    for number, repeat in enumerate(side["repeats"]):
        requests = repeat["requests"]
        assert [r["digest"] for r in requests] == direct_digests(pipeline, 5, SEED + number)
        for r in requests:
            assert r["num_steps"] == steps if steps else r["num_steps"] > 1
            assert min(r["prepare_s"], r["alone_s"], r["e2e_s"]) > 0
            assert r["start_s"] + r["e2e_s"] <= repeat["seconds"] + 1e-9
        assert repeat["work_times"][-1][1] == sum(r["num_steps"] for r in requests)
        assert repeat["work_times"][-1][0] == pytest.approx(repeat["seconds"], abs=1e-5)
        assert repeat["counters"]["num_steps"] >= max(r["num_steps"] for r in requests)
    assert side["repeats"][0]["digest"] != side["repeats"][1]["digest"]
    summary = side["summary"]
    assert summary["requests_per_s"] == pytest.approx(5 / summary["duration_s"])
    assert [summary[key]["count"] for key in ("batch", "alone", "prepare")] == [5, 5, 5]
    assert side["startup_seconds"] > side["engine"]["startup_seconds"] > 0
    assert side["engine_summary"]["graph_hit_share"] == 0
    assert side["engine_summary"]["peak_memory_bytes"] > 1 << 20
    assert side_metrics(side)["alone_p50_ms"] == summary["alone"]["p50"]
    assert ("steps/s" in out) == (steps is None)
    assert "tok" not in out.partition("report:")[0]
    check_page((tmp_path / "run" / "report.html").read_text(), is_iterative=steps is None)


def test_a_right_candidate_agrees_and_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = candidate(tmp_path, "linear", LINEAR)
    words = (*DLRM, "--num-requests", "6", "--repeats", "2", "--candidates", right)
    code, out, err = e2e(capsys, *words, "--out", tmp_path / "run")
    assert code == 0, err
    results = load_results(tmp_path / "run")
    (comparison,) = results["comparisons"]
    outputs = {o["name"]: o for o in comparison["outputs"]}
    assert set(outputs) == {"logits", "probability"}
    for o in outputs.values():
        assert (o["num_pairs"], o["num_unlike"]) == (12, 0)
        assert 0 < o["largest_relative_error"] < 1e-5
        assert o["least_cosine"] > 1 - 1e-9
    assert set(comparison["latency"]) == {"batch", "alone", "prepare"}
    (line,) = results["sides"][1]["replacements"]
    assert (line["op"], line["status"]) == ("linear", "REPLACED")
    assert "probability" in out
    page = render_e2e(results)
    assert "output-table" in page
    assert "probability" in page
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.slow
def test_a_wrong_candidate_shows_how_far_its_outputs_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = candidate(tmp_path, "relu", RELU.replace("{least}", "-0.5"))
    code, out, _ = e2e(capsys, *DLRM, "--num-requests", "3", "--repeats", "1", "--candidates", wrong, "--json")
    assert code == 0
    (comparison,) = json.loads(out)["comparisons"]
    assert comparison["has_equal_digests"] == [False]
    outputs = {o["name"]: o for o in comparison["outputs"]}
    assert set(outputs) == {"logits", "probability"}
    for o in outputs.values():
        assert (o["num_pairs"], o["num_equal"], o["num_unlike"]) == (3, 0, 0)
        assert o["largest_relative_error"] > 1e-3


@pytest.mark.slow
def test_a_broken_candidate_leaves_the_baseline_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = candidate(tmp_path, "relu", RELU.replace("{least}", "no_such_name"))
    words = (*DLRM, "--num-requests", "2", "--repeats", "1", "--candidates", broken, "--out", tmp_path / "run")
    code, _, err = e2e(capsys, *words)
    assert code == 1
    assert "no_such_name" in err
    results = load_results(tmp_path / "run")
    assert [len(side["repeats"]) for side in results["sides"]] == [1, 0]
    assert "no_such_name" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--model", "tiny-dinov3", "--workload", "balanced"), "'balanced' is of prompts; say --workload examples"),
        (("--model", "tiny-dinov3", "--workload", "exampels"), "say --workload examples"),
        (("--model", "tiny-dinov3", "--workload", "azure_conv", "--quick"), "say --workload examples"),
        (("--model", "tiny-llama", "--workload", "examples"), "say --workload with one of demo, single, batch32"),
        (("--model", "tiny-llama", "--workload", "examples", "--quick"), "tiny-llama makes tokens"),
        ((*DINO, "--request-rate", "3"), "no route for answers of tiny-dinov3"),
        ((*DINO, "--server", "http://127.0.0.1:9"), "leave --server out"),
        ((*DINO, "--request-rate", "3"), "of tokens, embeddings and images; leave --request-rate out"),
        ((*DINO, "--speedup", "2"), "leave --speedup out"),
        ((*BGE, "--speedup", "2"), "--speedup replays arrival times; examples has none"),
        ((*BGE, "--request-rate", "3", "--goodput", "ttft:9"), "--goodput ttft:9 is of answers that come in pieces"),
        ((*BGE, "--max-concurrency", "2"), "give --request-rate or --server"),
        ((*DINO, "--max-concurrency", "2", "--goodput", "e2e:9"), "leave --max-concurrency and --goodput out"),
        ((*DINO, "--num-requests", "0"), "--num-requests is 0; the least is 1"),
        ((*DINO, "--scale", "0.5"), "leave it out"),
        ((*DINO, "--tp", "2"), "runs on 1 device; leave --tp out"),
        ((*DINO, "--engine", "num_pages=8"), "'num_pages' is of tokens. It has device, dtype, max_num_seqs"),
        ((*DINO, "--engine", "no_such=8"), "The engine has no option 'no_such'"),
        (("--model", "tiny-dinov3", "--workload", "examples", "--device", "fake"), "say cpu or cuda"),
    ],
)
def test_a_mistake_is_one_message_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    code, out, err = e2e(capsys, *words)
    assert (code, out) == (2, "")
    assert says in " ".join(err.split())
    assert err.count("error:") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_embeddings_under_load_over_http(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--num-requests", "6", "--repeats", "2", "--request-rate", "50", "--seed", str(SEED))
    code, out, err = e2e(capsys, *BGE, *words, "--goodput", "e2e:60000", "--out", tmp_path / "run")
    assert code == 0, err
    results = load_results(tmp_path / "run")
    (side,) = results["sides"]
    assert side["engine"]["model"] == "tiny-bge_m3"
    pipeline = Pipeline("tiny-bge_m3", device="cpu")
    for number, repeat in enumerate(side["repeats"]):
        expected = pipeline.run(pipeline.example_requests(6, SEED + number))
        assert [q["prompt_len"] for q in repeat["requests"]] == [result.num_tokens for result in expected]
        assert all(q["e2e_s"] > 0 and q["ttft_s"] is None for q in repeat["requests"])
        assert [made for _, made in repeat["answer_times"]][:6] == [1, 2, 3, 4, 5, 6]
        assert repeat["digest_of"] == "answers"
    assert side["repeats"][0]["digest"] != side["repeats"][1]["digest"]
    summary = side["summary"]
    assert summary["requests_per_s"] == pytest.approx(6 / summary["duration_s"])
    assert summary["e2e"]["count"] == summary["goodput"]["num_good"] == 6
    assert "output_tokens_per_s" not in summary
    assert "E2E" in out
    assert "tok" not in out.partition("report:")[0]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "from sending a request to its whole answer" in page
    assert '"concurrency"' in page


async def _answer(body: bytes, route: Embeddings | Images) -> RequestRecord:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        endpoint = Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        load = Load(endpoint, "m", route)
        request = {"text": "a", "prompt": "a", "guidance_scale": 5.0, "steps": 2, "seed": 1}
        await load.run([request], [0.0])
        return load.records[0]


def test_an_answer_in_one_piece_is_known_by_its_digest() -> None:
    given = {"data": [{"b64_json": "AAAA"}]}
    first, same, other = (
        asyncio.run(_answer(json.dumps(answer).encode(), Images()))
        for answer in (given, given, {"data": [{"b64_json": "AAAB"}]})
    )
    assert first.is_complete
    assert first.text == same.text != other.text
    assert first.ttft_s is None
    embedding = {"data": [{"embedding": "AAAA"}], "usage": {"prompt_tokens": 7}}
    assert asyncio.run(_answer(json.dumps(embedding).encode(), Embeddings())).prompt_len == 7


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"data": []}', b'{"data": [{"embedding": null}]}', b"<html>"])
def test_what_is_no_answer_is_an_error_of_the_request(body: bytes) -> None:
    record = asyncio.run(_answer(body, Embeddings()))
    assert not record.is_complete
    assert record.error


@pytest.mark.parametrize(("model", "times"), [("tiny-llama", "token_times"), ("tiny-bge_m3", "answer_times")])
def test_a_load_of_which_every_request_failed_is_still_of_its_kind(model: str, times: str) -> None:
    scenario = Scenario(model, "examples" if model == "tiny-bge_m3" else "demo", 2)
    records = [RequestRecord(i, 3, 4, 0.0, error="HttpError: HTTP 500: no") for i in range(2)]
    side = Side("baseline")
    repeat = _repeat(side, 0, records, {}, {}, None, scenario.makes_tokens)
    assert repeat[times] == []
    assert (0 in side.tokens) == scenario.makes_tokens


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-bge_m3"])
@pytest.mark.parametrize("num_answered", [0, 1])
def test_the_page_of_a_load_of_which_nothing_came_back_says_so(model: str, num_answered: int) -> None:
    """num_answered: of the baseline's two repeats; of the candidate's none."""
    scenario = Scenario(model, "examples" if model == "tiny-bge_m3" else "demo", 3)
    errors = [RequestRecord(i, 3, 4, 0.0, error=f"HttpError: HTTP {code}") for i, code in enumerate((500, 503, 503))]
    ttft_s, token_ids = (0.1, [1, 2]) if scenario.makes_tokens else (None, None)
    done = [RequestRecord(i, 3, 4, 0.0, ttft_s, 0.25, output_len=2, token_ids=token_ids) for i in range(3)]
    sides = [Side("baseline"), Side("mine")]
    for side in sides:
        for number in range(2):
            is_answered = side is sides[0] and number < num_answered
            records = done if is_answered else errors
            side.repeats.append(_repeat(side, number, records, {}, {}, 0.5, scenario.makes_tokens))
    results: Any = {
        **{"kind": "e2e", "run_id": "x", "created": "2026-01-01T00:00:00+00:00"},
        **{"status": "finished", "mode": "serving"},
        **{"environment": environment("cpu"), "request": {"model": model}, "comparisons": comparisons(sides)},
        "workload": scenario.describe(scenario.requests() if scenario.makes_tokens else ()),
        "sides": [side_json(side, LoadPlan(goodput_ms={"e2e": 1000.0})) for side in sides],
    }
    assert results["comparisons"] == []
    assert results["sides"][0]["summary"]["num_completed"] == 3 * num_answered
    page = render_e2e(results)
    body = page[page.index("<body") : page.index("<script", page.index("<body"))]
    assert "mine: nothing came back: all 6 requests failed, most often with: HttpError: HTTP 503" in body
    assert ("baseline: nothing came back" in body) == (num_answered == 0)
    assert ('<div class="tiles">' in body) == (num_answered == 1)
    assert ('id="latency-table"' in body) == (num_answered == 1)
    row = r"<td class=\"number\" data-value=\"(.*?)\">(.*?)</td>"
    [shown] = re.findall(r'<tr><th scope="row">mine</th>\s*' + row, body[: body.index("engine-table")])
    assert shown == ("", "\u2013")
    assert "0.000" not in body
    tables = e2e_tables(results)
    assert list(tables[0].columns[1].cells)[1] == "-"


def test_quick_takes_few_of_the_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Scenario("tiny-dinov3", "examples").size == 64
    code, out, err = e2e(capsys, *DLRM, "--quick", "--json")
    assert code == 0, err
    results = json.loads(out)
    assert results["workload"]["num_requests"] == 32
    assert len(results["sides"][0]["repeats"]) == 1


def agreement(expected: Tensor | None, found: Tensor | None) -> OutputAgreement:
    one = OutputAgreement("x")
    one.add(expected, found)
    return one


def test_agreement_measures_the_largest_error_and_the_least_cosine() -> None:
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    one = agreement(a, torch.tensor([[4.0, 3.0], [0.0, 0.0]]))
    assert one.largest_relative_error == pytest.approx(1 / 4)
    assert one.least_cosine == pytest.approx(24 / 25)
    one.add(a, a)
    assert (one.num_pairs, one.num_equal) == (2, 1)
    assert one.largest_relative_error == pytest.approx(1 / 4)
    assert one.least_cosine == pytest.approx(24 / 25)
    zero = torch.zeros(3)
    assert (agreement(zero, zero).largest_relative_error, agreement(zero, zero).least_cosine) == (0.0, 1.0)
    assert agreement(zero, torch.ones(3)).least_cosine == 0.0
    assert agreement(a, -a).least_cosine == pytest.approx(-1.0)
    empty = agreement(torch.zeros(0, 4), torch.zeros(0, 4))
    assert (empty.num_equal, empty.num_unlike, empty.largest_relative_error) == (1, 0, 0.0)


@pytest.mark.parametrize(
    ("expected", "found", "num_unlike"),
    [
        (torch.ones(2), torch.ones(3), 1),
        (torch.ones(2), torch.ones(2).double(), 1),
        (torch.ones(2), None, 1),
        (None, torch.ones(2), 1),
        (torch.tensor([1.0, math.nan]), torch.tensor([1.0, 0.0]), 1),
        (torch.tensor([1.0, 0.0]), torch.tensor([1.0, math.nan]), 1),
        (torch.tensor([1.0, math.inf]), torch.tensor([1.0, -math.inf]), 1),
        (torch.tensor([1.0, math.inf, math.nan]), torch.tensor([1.0, math.inf, math.nan]), 0),
        (torch.tensor([1, 2]), torch.tensor([2, 1]), 0),
    ],
)
def test_what_cannot_be_compared_is_counted_and_no_number_is_made_of_it(
    expected: Tensor | None, found: Tensor | None, num_unlike: int
) -> None:
    one = agreement(expected, found)
    assert one.num_unlike == num_unlike
    is_compared = not num_unlike and expected is not None and expected.is_floating_point()
    assert (one.largest_relative_error, one.least_cosine) == ((0.0, 1.0) if is_compared else (None, None))
    assert one.num_equal == is_compared


def test_a_digest_tells_names_dtypes_shapes_and_bits_apart() -> None:
    x = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    given = [{"x": x}, {"y": x}, {"x": x.T}, {"x": x.reshape(3, 2)}, {"x": x.int()}, {"x": -x}, {"x": x, "y": x}]
    assert len({result_digest(tensors) for tensors in given}) == len(given)
    assert result_digest({"a": x, "b": x.bool()}) == result_digest({"b": x.bool(), "a": x.clone()})
    assert result_digest({"x": x.bfloat16()}) != result_digest({"x": x.half()})


def test_outputs_beyond_the_limit_are_not_kept(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        kept = KeptOutputs(tmp_path / name, most_bytes=100)
        x = torch.ones(10)
        for index in range(4):
            kept.keep(0, index, {"x": x, "first": x[0]})
    assert [p.name for p in sorted((tmp_path / "a").iterdir())] == ["0-0.safetensors", "0-1.safetensors"]
    found = {o["name"]: o["num_equal"] for o in compare_outputs(tmp_path / "a", tmp_path / "b", range(1))}
    assert found == {"x": 2, "first": 2}
    assert compare_outputs(tmp_path / "a", tmp_path / "b", range(1, 2)) == []


def test_summary_counts_the_steps_of_each_request_and_leaves_out_who_was_not_alone() -> None:
    request: dict[str, Any] = {"num_steps": 3, "prepare_s": 0.001, "e2e_s": 0.5, "alone_s": None}
    requests = [request, {**request, "num_steps": 1, "e2e_s": 0.3, "alone_s": 0.2}]
    summary = pipeline_summary({"seconds": 2.0, "requests": requests})
    assert (summary["requests_per_s"], summary["steps_per_s"], summary["num_request_steps"]) == (1.0, 2.0, 4)
    assert summary["batch"]["p50"] == pytest.approx(400.0)
    assert summary["alone"]["count"] == 1


def test_an_unknown_model_is_told_before_its_workload() -> None:
    with pytest.raises(UsageError, match="no_such_model"):
        _ = Scenario("no_such_model", "examples").size
