"""POST /v1/audio/transcriptions with the openai client, its forms of answer, and what is refused."""

from __future__ import annotations

import base64
import io
import json
import threading
import wave
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai import OpenAI
from openai.types.audio import TranscriptionVerbose

from fastkernels.engine.llm import LLM
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.server.errors import ApiError
from fastkernels.server.local import LocalServer, running_server
from fastkernels.server.multipart import Part, read_form

MODEL = "tiny-whisper"
RATE = 16000


def wav(seconds: float, pitch: float = 300.0, rate: int = RATE, channels: int = 1) -> bytes:
    time = np.arange(int(seconds * rate)) / rate
    samples = (9000 * np.sin(2 * np.pi * pitch * time * (1 + 0.2 * time))).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.repeat(samples, channels).tobytes())
    return file.getvalue()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """tiny-whisper, whose answers end only where its positions do, with fewer of them."""
    preset = json.loads(files("fastkernels.engine").joinpath("presets", f"{MODEL}.json").read_text())
    path = tmp_path_factory.mktemp("config") / f"{MODEL}.json"
    path.write_text(json.dumps({**preset, "max_target_positions": 64}))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sounds")
    (path / "a.wav").write_bytes(wav(0.7))
    return path


@pytest.fixture(scope="module")
def whisper(config: str, folder: Path) -> Iterator[LocalServer]:
    options = ("--allowed-local-media-path", str(folder), "--allowed-media-domain", "127.0.0.1")
    with running_server(config, "--device", "cpu", *options) as running:
        yield running


@pytest.fixture(scope="module")
def listener(whisper: LocalServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{whisper.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def expected(config: str) -> list[str]:
    """Of one window of 0.7 s and of 2.4 s in three."""
    llm = LLM(config, device="cpu")
    processor: Any = llm.processor
    texts = []
    for content in (wav(0.7), wav(2.4, 500.0)):
        windows, tokens = processor.windows(content), processor.prompt_tokens()
        params = processor.sampling_params(SamplingParams(temperature=0, max_tokens=448), len(tokens))
        outputs = llm.generate(processor.prompts(windows, tokens), params)
        texts.append(processor.transcription(windows, [o.outputs[0].token_ids for o in outputs], None).text)
    return texts


def test_text_is_that_of_the_model_whatever_its_length(listener: OpenAI, expected: list[str]) -> None:
    short = listener.audio.transcriptions.create(model=MODEL, file=("a.wav", wav(0.7)))
    assert short.text == expected[0]
    long = listener.audio.transcriptions.create(model=MODEL, file=("b.wav", wav(2.4, 500.0)), temperature=0.0)
    assert long.text == expected[1]
    assert len(set(expected)) == 2


def test_formats_tell_the_same_text(listener: OpenAI, expected: list[str]) -> None:
    file = ("b.wav", wav(2.4, 500.0))
    text = listener.audio.transcriptions.create(model=MODEL, file=file, response_format="text")
    assert str(text).rstrip("\n") == expected[1]
    verbose = listener.audio.transcriptions.create(
        model=MODEL, file=file, response_format="verbose_json", language="fr", timestamp_granularities=["segment"]
    )
    assert (verbose.text, verbose.duration, verbose.language) == (expected[1], 2.4, "fr")
    segments = verbose.segments
    assert segments is not None
    assert [(s.id, s.start, s.end, s.seek) for s in segments] == [(0, 0, 1, 0), (1, 1, 2, 100), (2, 2, 2.4, 200)]
    assert "".join(s.text for s in segments).strip() == verbose.text
    assert all(s.avg_logprob < 0 and s.tokens and s.compression_ratio > 0 for s in segments)


@pytest.mark.parametrize(("given", "told"), [({}, "en"), ({"language": "french"}, "fr")])
def test_the_verbose_form_has_all_that_openais_has(whisper: LocalServer, given: dict[str, str], told: str) -> None:
    answer = httpx.post(
        f"{whisper.url}/v1/audio/transcriptions",
        files={"file": ("a.wav", wav(1.5))},
        data={"response_format": "verbose_json", **given},
    )
    verbose = TranscriptionVerbose.model_validate(answer.json())
    assert verbose.language == told
    assert [segment.no_speech_prob for segment in verbose.segments or ()] == [0.0, 0.0]


def test_two_channels_at_another_rate_are_heard(listener: OpenAI) -> None:
    content = wav(0.5, rate=44100, channels=2)
    assert listener.audio.transcriptions.create(model=MODEL, file=("a.wav", content)).text


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the recording of 0.7 s is served."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(wav(0.7))

        def log_message(self, *_: Any) -> None:
            pass

    files = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=files.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{files.server_port}/a.wav"
    files.shutdown()
    thread.join()
    files.server_close()


def ask_by_url(server: LocalServer, url: str, way: str, **more: Any) -> httpx.Response:
    fields = {"model": MODEL, "url": url, **more}
    given = {"json": fields} if way == "json" else {"files": {name: (None, str(v)) for name, v in fields.items()}}
    return httpx.post(f"{server.url}/v1/audio/transcriptions", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["form", "json"])
@pytest.mark.parametrize("source", ["http", "data", "file"])
def test_a_recording_that_is_named_is_the_one_that_is_sent(
    whisper: LocalServer, expected: list[str], folder: Path, address: str, source: str, way: str
) -> None:
    data = f"data:audio/wav;base64,{base64.b64encode(wav(0.7)).decode()}"
    url = {"http": address, "data": data, "file": (folder / "a.wav").as_uri()}[source]
    answer = ask_by_url(whisper, url, way, temperature=0)
    assert (answer.status_code, answer.json()) == (200, {"text": expected[0]})
    verbose = ask_by_url(whisper, url, way, response_format="verbose_json", language="fr", max_completion_tokens=5)
    assert verbose.json()["language"] == "fr"
    assert [len(segment["tokens"]) for segment in verbose.json()["segments"]] == [5]


@pytest.mark.parametrize("way", ["form", "json"])
@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"url": "http://localhost:9/a.wav"}, "url", "may not be fetched: this server takes media from 127.0.0.1"),
        ({"url": "http://127.0.0.1:9/a.wav"}, "url", "url: The audio http://127.0.0.1:9/a.wav cannot be fetched"),
        ({"url": "file:///etc/passwd"}, "url", "may not be read: of this machine's files only those below"),
        ({"url": "ftp://127.0.0.1/a.wav"}, "url", "is no http, https or data URL"),
        ({"url": "data:audio/wav;base64,AAAA"}, "url", "url: The audio of 3 bytes cannot be read: Format not recog"),
        ({"url": ""}, "file", "file is missing: send the recording as a file of a form, or its http, https or data"),
        ({"url": "data:,", "temperature": 2}, "temperature", "it is a number in [0, 1]"),
        ({"url": "data:,", "max_completion_tokens": 0}, "max_completion_tokens", "at least 1"),
        ({"url": "data:,", "response_format": "srt"}, "response_format", "'srt'; it is json, text, verbose_json"),
        ({"url": "data:,", "stream": True}, "stream", "comes at once"),
    ],
)
def test_what_is_named_and_cannot_be_heard_is_refused(
    whisper: LocalServer, way: str, fields: dict[str, Any], param: str, says: str
) -> None:
    answer = ask_by_url(whisper, way=way, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "param", "says"),
    [
        (b"{", None, "The body is not JSON"),
        (b"[]", None, "must be a JSON object"),
        (b'{"url": 5}', "url", "url is 5; Input should be a valid string"),
        (b'{"url": "data:,\\ud800"}', None, "The body is not JSON"),
        (b'{"url": "data:,", "temperature": NaN}', "temperature", "temperature is nan"),
    ],
)
def test_json_that_is_off_is_refused(whisper: LocalServer, content: bytes, param: str | None, says: str) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    answer = httpx.post(f"{whisper.url}/v1/audio/transcriptions", content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert says in answer.json()["error"]["message"]


def test_one_recording_is_heard_and_none_by_a_model_of_text(
    whisper: LocalServer, server: LocalServer, address: str
) -> None:
    both = {"file": ("a.wav", wav(0.2)), "url": (None, address)}
    answer = httpx.post(f"{whisper.url}/v1/audio/transcriptions", files=both)
    assert "file and url are given" in answer.json()["error"]["message"]
    no_file = httpx.post(f"{whisper.url}/v1/audio/transcriptions", files={"file": (None, "a.wav")})
    assert "it has no filename" in no_file.json()["error"]["message"]
    deaf = httpx.post(f"{server.url}/v1/audio/transcriptions", json={"url": "http://127.0.0.1:9/a.wav"})
    assert (deaf.status_code, deaf.json()["error"]["message"]) == (400, "tiny-llama takes no audio.")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"file": ("a.wav", b"not a sound at all")}, "file: The audio of 18 bytes cannot be read: Format not recog"),
        ({"file": ("a.wav", wav(0.5)[:40])}, "file: "),
        ({"response_format": "srt"}, "response_format is 'srt'; it is json, text, verbose_json"),
        ({"temperature": "hot"}, "temperature is 'hot'; it is a number in"),
        ({"temperature": 3}, "temperature is 3; it is a number in"),
        ({"timestamp_granularities": ["word"]}, "words are not timed"),
        ({"prompt": "before"}, "no <|startofprev|>"),
    ],
)
def test_what_cannot_be_done_is_refused(listener: OpenAI, changes: dict[str, Any], says: str) -> None:
    given: dict[str, Any] = {"model": MODEL, "file": ("a.wav", wav(0.3)), **changes}
    with pytest.raises(openai.BadRequestError) as error:
        listener.audio.transcriptions.create(**given)
    assert says in str(error.value)


def test_other_models_and_other_routes_are_refused(listener: OpenAI, whisper: LocalServer, client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="There is no model 'other'"):
        listener.audio.transcriptions.create(model="other", file=("a.wav", wav(0.3)))
    with pytest.raises(openai.BadRequestError, match="takes no audio"):
        client.audio.transcriptions.create(model="tiny-llama", file=("a.wav", wav(0.3)))
    points = "tiny-whisper answers nothing without audio. Use POST /v1/audio/transcriptions"
    with pytest.raises(openai.BadRequestError, match=points):
        listener.completions.create(model=MODEL, prompt="hello")
    with pytest.raises(openai.BadRequestError, match=points):
        listener.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello"}])
    sound = {"data": base64.b64encode(wav(0.3)).decode(), "format": "wav"}
    parts: Any = [{"type": "input_audio", "input_audio": sound}]
    with pytest.raises(openai.BadRequestError, match=points):
        listener.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
    with pytest.raises(openai.BadRequestError, match=points):
        listener.embeddings.create(model=MODEL, input="hello")
    for body, kind in ((b"{}", "application/json"), (b"{}", "text/plain"), (b"", "multipart/form-data; boundary=x")):
        answer = httpx.post(f"{whisper.url}/v1/audio/transcriptions", content=body, headers={"content-type": kind})
        assert answer.status_code == 400
    answer = httpx.post(f"{whisper.url}/v1/audio/transcriptions", files={"model": (None, MODEL)})
    assert answer.status_code == 400
    assert "file is missing" in answer.json()["error"]["message"]


def test_forms_keep_bytes_as_they_are() -> None:
    content = bytes(range(256)) * 3 + b"\r\n--x\r\n\n\r--" + b"\r\n"
    request = httpx.Request("POST", "http://x", files={"file": ("a b.wav", content), "n": (None, "1\r\n2")})
    form = read_form(request.headers["content-type"], request.read())
    assert form == {"file": [Part(content, "a b.wav")], "n": [Part(b"1\r\n2")]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n", "ends before its last boundary"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--\r\n", "has no name"),
        (b"--x\r\nno head\r\n--x--\r\n", "no head"),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n" * 70 + b"--x--\r\n", "70 parts"),
    ],
)
def test_broken_forms_are_refused(body: bytes, says: str) -> None:
    with pytest.raises(ApiError, match=says):
        read_form("multipart/form-data; boundary=x", body)
