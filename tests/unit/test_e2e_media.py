"""`fastkernels e2e` of models that take pictures or sounds: prompts beside examples, offline and as files over HTTP."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from fastkernels.bench.e2e.media_routes import Transcriptions
from fastkernels.bench.e2e.scenario import Scenario
from fastkernels.cli import main
from fastkernels.engine.model_source import find_model, find_tokenizer
from fastkernels.pipelines.media import load_audio, load_image, load_video
from fastkernels.report.load import load_results
from fastkernels.server.local import running_server
from fastkernels.server.multipart import read_form

PLACEHOLDERS = {512, 513, 514, 515}
"""Of tiny-qwen2_vl: a vision's start and end, a picture, a video."""


def test_no_drawn_token_stands_for_a_picture() -> None:
    scenario = Scenario("tiny-qwen2_vl", "balanced", 50, 0.2)
    assert scenario.media is not None
    assert scenario.media.placeholders == PLACEHOLDERS
    requests = scenario.requests()
    drawn = {token for request in requests for token in request.prompt_token_ids}
    assert not drawn & PLACEHOLDERS
    assert len(drawn) > 500
    assert scenario.requests(0, 8)[0].output_len == 7


def test_prompts_go_with_media_by_seed_and_have_room_for_them() -> None:
    scenario = Scenario("tiny-qwen2_vl", "batch32", 4)
    requests = scenario.requests()
    assert scenario.longest == scenario.max_model_len - 256  # a quarter of what the tiny model takes
    assert all(len(r.prompt_token_ids) + r.output_len <= scenario.longest for r in requests)
    kinds = [list(prompt.get("multi_modal_data", ())) for prompt in scenario.prompts(requests)]
    assert kinds == [["image"], ["image"], ["video"], []]
    tokens = [prompt["prompt_token_ids"] for prompt in scenario.prompts(requests)]
    assert tokens == [prompt["prompt_token_ids"] for prompt in scenario.prompts(requests)]
    assert tokens != [prompt["prompt_token_ids"] for prompt in scenario.prompts(requests, 1)]
    assert Scenario("tiny-llama", "single").media is None


@pytest.mark.parametrize("model", ["tiny-qwen2_vl", "tiny-whisper"])
def test_a_model_that_sees_or_hears_is_measured_offline(model: str, tmp_path: Path) -> None:
    words = ["--model", model, "--device", "cpu", "--workload", "batch32", "--scale", "0.02", "--num-requests", "4"]
    with pytest.raises(SystemExit) as stop:
        main(["e2e", *words, "--repeats", "1", "--out", str(tmp_path / "run"), "--no-track"])
    assert not stop.value.code
    (side,) = load_results(tmp_path / "run")["sides"]
    requests = side["repeats"][0]["requests"]
    assert [request["output_len"] for request in requests] == [3] * 4
    if model == "tiny-qwen2_vl":
        assert requests[0]["prompt_len"] > requests[3]["prompt_len"] == 10, "A picture has tokens of its own."


def test_over_http_media_are_files_and_drawn_tokens_are_as_many_words() -> None:
    scenario = Scenario("tiny-qwen2_vl", "batch32", 4)
    assert scenario.media is not None
    tokenizer = find_tokenizer(find_model("tiny-qwen2_vl"))
    requests, load = scenario.requests(), scenario.load()
    for request, sent in zip(requests, load, strict=True):
        assert len(tokenizer.encode(sent.words).ids) == len(sent.words.split()) == len(request.prompt_token_ids)
        assert sent.output_len == request.output_len
    assert len({sent.words for sent in load}) == 4
    assert [[file.kind for file in sent.files] for sent in load] == [
        ["image/png"],
        ["image/png"] * 2,
        ["image/gif"],
        [],
    ]
    offline = scenario.prompts(requests)
    assert np.array_equal(load_image(load[0].files[0].content), offline[0]["multi_modal_data"]["image"][0])
    assert load_video(load[2].files[0].content).shape == offline[2]["multi_modal_data"]["video"][0].shape
    cut = scenario.load(0, 300, 2)
    assert [len(sent.words.split()) + sent.output_len for sent in cut] == [300 - 256] * 2


def test_a_recording_over_http_is_the_one_that_is_heard_offline() -> None:
    scenario = Scenario("tiny-whisper", "batch32", 2, 0.1)
    for sent, prompt in zip(scenario.load(), scenario.prompts(scenario.requests()), strict=True):
        form = read_form(*_typed(Transcriptions().content("m", sent)))
        assert {name: part.content for name, [part] in form.items() if part.filename is None} == {
            "model": b"m",
            "response_format": b"verbose_json",
            "temperature": b"0",
            "max_completion_tokens": b"13",
        }
        heard = load_audio(form["file"][0].content, 16000)
        assert np.abs(heard - prompt["multi_modal_data"]["audio"]).max() < 1e-4


def _typed(body: bytes) -> tuple[str, bytes]:
    boundary = body[2 : body.index(b"\r\n")].decode()
    return f"multipart/form-data; boundary={boundary}", body


@pytest.mark.slow
@pytest.mark.parametrize("is_ours", [True, False])
@pytest.mark.parametrize("model", ["tiny-qwen2_vl", "tiny-whisper"])
def test_a_model_that_sees_or_hears_is_measured_under_load(model: str, is_ours: bool, tmp_path: Path) -> None:
    words = ["--model", model, "--device", "cpu", "--workload", "batch32", "--scale", "0.02", "--num-requests", "4"]
    with contextlib.ExitStack() as stack:
        if is_ours:
            where = ["--request-rate", "inf", "--engine", "warm=lazy"]
        else:
            where = ["--server", stack.enter_context(running_server(model, "--device", "cpu")).url]
        with pytest.raises(SystemExit) as stop:
            main(["e2e", *words, *where, "--out", str(tmp_path / "run"), "--no-track"])
    assert not stop.value.code
    results = load_results(tmp_path / "run")
    (side,) = results["sides"]
    [repeat] = side["repeats"]
    assert (repeat["digest_of"], repeat["token_times"][-1][1]) == ("token ids", 12)
    assert [request["output_len"] for request in repeat["requests"]] == [3] * 4
    assert side["summary"]["num_output_tokens"] == 12
    assert side["summary"]["e2e"]["count"] == 4
    if model == "tiny-whisper":
        assert side["summary"]["ttft"] is None
    else:
        assert side["summary"]["ttft"]["count"] == 4
        assert repeat["requests"][2]["prompt_len"] > 128 > repeat["requests"][3]["prompt_len"], "A video is tokens."
    shown = "E2E" if model == "tiny-whisper" else "TTFT"
    assert f"{shown} p50, ms" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("tiny-whisper", "--request-rate", "3", "--goodput", "ttft:500"),
            "--goodput ttft:500 is of answers that come in pieces; those of tiny-whisper come whole: give e2e alone.",
        ),
        (("tiny-llama", "--burstiness", "0.5"), "--burstiness 0.5 is of the gaps that --request-rate draws"),
        (("tiny-llama", "--server", "http://127.0.0.1:9", "--burstiness", "2"), "--burstiness 2 is of the gaps"),
    ],
)
def test_load_that_cannot_be_made_is_refused(
    words: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["e2e", "--model", *words, "--device", "cpu", "--workload", "single", "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
