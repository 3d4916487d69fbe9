"""The routes of which the fake device knows nothing, on the tiny models that answer them: requests that are mostly
right and go deep. No 5xx, an answer in time, and the server lives."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import wave
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastkernels.server.local import LocalServer, running_server

COMPLETIONS, CHAT, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
IMAGES, TRANSCRIPTIONS = "/v1/images/generations", "/v1/audio/transcriptions"
HALF = "\ud800"
Strategy = st.SearchStrategy[Any]

TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
"""Halves of surrogate pairs and all: JSON can spell them."""

NUMBER = st.sampled_from([0, 1, -1, 0.5, 1.0, 2.0, 1e-9, 1e30, float("nan"), float("inf"), 2**63])
ANYTHING = st.one_of(st.none(), st.booleans(), NUMBER, TEXT, st.lists(TEXT, max_size=2), st.just({"a": [{}]}))
FLAG = st.one_of(st.booleans(), st.none())


def often(right: Strategy, other: Strategy = ANYTHING) -> Strategy:
    """The right kind of value nine times of ten: a body of a dozen fields is to be answered now and then."""
    return st.integers(0, 9).flatmap(lambda i: other if i == 9 else right)


def whole(least: int, most: int) -> Strategy:
    return often(st.integers(least, most), st.sampled_from([least - 1, most + 1, -1, 2**31, 2**64, None, "1", 1.5]))


def body(required: dict[str, Strategy], **optional: Strategy) -> Strategy:
    return st.fixed_dictionaries(required, optional=optional)


def tokens(vocab_size: int, max_size: int = 6) -> Strategy:
    return st.lists(often(st.integers(0, vocab_size - 1), st.sampled_from([-1, vocab_size])), max_size=max_size)


def png(height: int, width: int) -> bytes:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def gif() -> bytes:
    file = io.BytesIO()
    frames = [Image.fromarray(np.full((28, 30, 3), 60 * i, np.uint8)) for i in range(3)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def wav(seconds: float, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((9000 * np.sin(np.arange(int(seconds * rate)) / 9)).astype("<i2").tobytes())
    return file.getvalue()


def data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


SCHEMAS = st.sampled_from(
    [
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"enum": ["x", HALF]},
        {"type": "string", "pattern": "^[ab]{2}$", "maxLength": 4},
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
        {"type": "nothing"},
        {"anyOf": []},
        {},
    ]
)
STRUCTURED = body(
    {},
    json=often(st.one_of(SCHEMAS, st.booleans(), TEXT)),
    regex=often(st.sampled_from(["[ab]+", "a{3}", "(", "(?=a)", "", HALF])),
    choice=often(st.sampled_from([["a", "bc"], [], [""], [HALF]])),
    grammar=often(st.sampled_from(['root ::= "a" | "b"', "root ::= root", "x", ""])),
    json_object=FLAG,
)
pytestmark = pytest.mark.slow
SAMPLING = {
    "n": whole(1, 3),
    "temperature": often(st.floats(0, 3), NUMBER),
    "top_p": often(st.floats(0.01, 1), NUMBER),
    "top_k": whole(0, 600),
    "min_p": often(st.floats(0, 1), NUMBER),
    "seed": often(st.integers(-(2**63), 2**63 - 1)),
    "stop": often(st.one_of(TEXT, st.lists(TEXT, max_size=3))),
    "stop_token_ids": often(tokens(512)),
    "presence_penalty": often(st.floats(-2, 2), NUMBER),
    "frequency_penalty": often(st.floats(-2, 2), NUMBER),
    "repetition_penalty": often(st.floats(0.1, 9), NUMBER),
    "logit_bias": often(st.dictionaries(st.sampled_from(["1", "511", "512", "-1", "a", HALF]), NUMBER, max_size=2)),
    "allowed_token_ids": often(tokens(512)),
    "ignore_eos": FLAG,
    "min_tokens": whole(0, 5),
    "prompt_logprobs": whole(0, 20),
    "skip_special_tokens": FLAG,
    "include_stop_str_in_output": FLAG,
    "stream": FLAG,
    "structured_outputs": often(STRUCTURED),
    "response_format": often(
        st.one_of(
            st.just({"type": "json_object"}),
            st.builds(lambda s: {"type": "json_schema", "json_schema": {"schema": s}}, SCHEMAS),
        )
    ),
    "user": ANYTHING,
}
PROMPTS = st.one_of(TEXT, tokens(512), st.lists(TEXT, max_size=3), st.lists(tokens(512), max_size=3))
URLS = st.sampled_from(
    [
        *[data_url(png(*size), "image/png") for size in ((28, 28), (30, 61), (1, 1), (2, 500))],
        data_url(gif(), "image/gif"),
        data_url(png(20, 20)[:50], "image/png"),
        *("data:,x", f"data:,{HALF}", "data:;base64,", "data:;base64,?", "file:///etc/passwd", "http://[", ""),
        *("http://127.0.0.1:9/a.png", f"http://{HALF}/", "http://a b/", "https://" + "a" * 300, HALF),
    ]
)
PARTS = st.lists(
    st.one_of(
        body({"type": st.just("text"), "text": often(TEXT)}),
        body(
            {"type": st.just("image_url"), "image_url": often(st.one_of(st.builds(lambda u: {"url": u}, URLS), URLS))}
        ),
        body({"type": st.just("video_url"), "video_url": often(st.builds(lambda u: {"url": u}, URLS))}),
        body({"type": TEXT}),
    ),
    max_size=3,
)
MESSAGES = st.lists(
    body(
        {
            "role": often(st.sampled_from(["system", "user", "assistant", "tool"])),
            "content": often(st.one_of(TEXT, PARTS)),
        },
        name=often(TEXT),
        tool_call_id=often(TEXT),
        reasoning_content=often(TEXT),
        tool_calls=often(
            st.sampled_from([[{"function": {"name": HALF, "arguments": '{"a": 1}'}}], [{"function": None}], [{}]])
        ),
    ),
    min_size=1,
    max_size=3,
)
BODIES: dict[tuple[str, str], Strategy] = {
    ("tiny-llama", COMPLETIONS): body(
        {"prompt": often(PROMPTS), "max_tokens": whole(1, 5)},
        **SAMPLING,
        echo=FLAG,
        logprobs=whole(0, 20),
        return_token_ids=FLAG,
        add_special_tokens=FLAG,
    ),
    ("tiny-qwen2_vl", CHAT): body(
        {"messages": often(MESSAGES), "max_tokens": whole(1, 5)},
        **SAMPLING,
        logprobs=FLAG,
        top_logprobs=whole(0, 20),
        tools=often(st.sampled_from([[{"function": {"name": HALF}}], [{}], []])),
        add_generation_prompt=FLAG,
        chat_template_kwargs=often(st.dictionaries(TEXT, ANYTHING, max_size=2)),
    ),
    ("tiny-bge_m3", EMBEDDINGS): body(
        {"input": often(st.one_of(PROMPTS, st.just("ab " * 999), st.just([[512, 513, 514]])))},
        encoding_format=often(st.sampled_from(["float", "base64"])),
        dimensions=ANYTHING,
        user=ANYTHING,
    ),
    ("tiny-sdxl", IMAGES): body(
        {
            "prompt": often(TEXT),
            "num_inference_steps": often(st.integers(1, 2), st.sampled_from([0, 1001, 2**64, 1.5, "2"])),
        },
        size=often(st.sampled_from(["64x64", "8x16", "auto"]), st.sampled_from(["9x8", "99992x99992", "0x8", HALF])),
        n=whole(1, 3),
        negative_prompt=often(TEXT),
        guidance_scale=often(st.floats(0, 1000), NUMBER),
        seed=often(st.sampled_from([0, 7, 2**62 - 1]), NUMBER),
        response_format=often(st.just("b64_json")),
        output_format=often(st.just("png")),
        user=ANYTHING,
    ),
}
FORMS = st.tuples(
    often(
        st.sampled_from([wav(0.2), wav(1.3, 8000), wav(0.05, 384_000)]),
        st.sampled_from([b"", b"RIFF", wav(0.2)[:60], wav(0.2)[:44], wav(0), png(9, 9), b"\0" * 999]),
    ),
    body(
        {},
        model=often(st.just(b"tiny-whisper"), st.binary(max_size=9)),
        language=often(st.sampled_from([b"en", b"English", b"fr"]), st.binary(max_size=9)),
        prompt=st.one_of(st.just(b""), st.binary(max_size=9)),
        temperature=often(st.sampled_from([b"0", b"1", b"0.5"]), st.sampled_from([b"nan", b"inf", b"\xb2", b""])),
        response_format=often(st.sampled_from([b"json", b"text", b"verbose_json"]), st.binary(max_size=9)),
        stream=st.sampled_from([b"true", b"false", b"\xff"]),
        max_completion_tokens=st.sampled_from([b"1", b"5", b"0", b"-1", b"9" * 30, b"x"]),
        include=st.binary(max_size=9),
    ),
)
SOUNDS = st.one_of(
    URLS, st.sampled_from([data_url(wav(0.2), "audio/wav"), data_url(wav(1.3, 8000), "audio/wav"), data_url(b"", "x")])
)
BODIES["tiny-whisper", TRANSCRIPTIONS] = body(
    {"url": often(SOUNDS), "response_format": often(st.sampled_from(["json", "text", "verbose_json"]))},
    language=often(st.sampled_from(["en", "English", "fr"])),
    prompt=often(st.just("")),
    temperature=often(st.floats(0, 1), NUMBER),
    max_completion_tokens=whole(1, 5),
    timestamp_granularities=often(st.just(["segment"])),
    stream=FLAG,
)
HEADERS = {"content-type": "application/json"}
MINIMAL: dict[tuple[str, str], dict[str, Any]] = {
    ("tiny-llama", COMPLETIONS): {"prompt": "a", "max_tokens": 1},
    ("tiny-llama", CHAT): {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    ("tiny-llama", EMBEDDINGS): {"input": "a"},
    ("tiny-llama", "/tokenize"): {"prompt": "a"},
    ("tiny-llama", "/detokenize"): {"tokens": [1]},
    ("tiny-llama", "/abort"): {"request_id": "a"},
    ("tiny-qwen2_vl", CHAT): {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    ("tiny-bge_m3", EMBEDDINGS): {"input": "a"},
    ("tiny-sdxl", IMAGES): {"prompt": "a", "num_inference_steps": 1, "size": "8x8"},
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LocalServer]]:
    """tiny-whisper, whose answers end where its positions do, has fewer of them."""
    preset = json.loads(files("fastkernels.engine").joinpath("presets", "tiny-whisper.json").read_text())
    whisper = tmp_path_factory.mktemp("config") / "tiny-whisper.json"
    whisper.write_text(json.dumps({**preset, "max_target_positions": 16}))
    configs = {model: model for model, _ in MINIMAL} | {"tiny-whisper": str(whisper)}
    with contextlib.ExitStack() as stack:
        start = stack.enter_context
        found = {name: start(running_server(config, "--device", "cpu")) for name, config in configs.items()}
        yield found
        for one in found.values():
            assert one.process.poll() is None
            assert '"outcome": "failed"' not in one.log


def fuzzing(max_examples: int) -> settings:
    checks = list(HealthCheck)
    return settings(
        max_examples=max_examples, deadline=None, derandomize=True, database=None, suppress_health_check=checks
    )


def check(response: httpx.Response) -> int:
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert response.json()["error"]["message"]
    elif response.headers["content-type"].startswith("text/event-stream"):
        events = [json.loads(line[6:]) for line in response.text.split("\n\n") if line.startswith("data: {")]
        assert not [event for event in events if event.get("error", {}).get("type") == "server_error"]
    return response.status_code


@pytest.mark.parametrize(("model", "path"), BODIES)
def test_no_body_ends_in_a_server_error(servers: dict[str, LocalServer], model: str, path: str) -> None:
    statuses = []
    with httpx.Client(base_url=servers[model].url, timeout=60, headers=HEADERS) as client:

        @fuzzing(40)
        @given(BODIES[model, path])
        def fuzz(asked: dict[str, Any]) -> None:
            statuses.append(check(client.post(path, content=json.dumps(asked))))

        fuzz()
    assert min(statuses.count(200), statuses.count(400)) > 2, statuses


def test_no_form_ends_in_a_server_error(servers: dict[str, LocalServer]) -> None:
    statuses = []
    with httpx.Client(base_url=servers["tiny-whisper"].url, timeout=60) as client:

        @fuzzing(25)
        @given(FORMS, st.integers(0, 9))
        def fuzz(form: tuple[bytes, dict[str, bytes]], cut: int) -> None:
            fields = [(name, (None, value)) for name, value in form[1].items()]
            request = client.build_request("POST", TRANSCRIPTIONS, files=[*fields, ("file", ("a.wav", form[0]))])
            content = request.read()
            kind = {"content-type": request.headers["content-type"]}
            statuses.append(check(client.post(TRANSCRIPTIONS, content=content[: -cut or None], headers=kind)))

        fuzz()
    assert min(statuses.count(200), statuses.count(400)) > 2, statuses


@pytest.mark.parametrize(("model", "path"), MINIMAL)
def test_half_a_surrogate_pair_is_a_server_error_in_no_field(
    servers: dict[str, LocalServer], model: str, path: str
) -> None:
    schema = httpx.get(f"{servers[model].url}/openapi.json").json()
    content = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    name = content["schema"]["$ref"].rpartition("/")[2]
    fields = schema["components"]["schemas"][name]["properties"]
    assert set(MINIMAL[model, path]) <= set(fields)
    with httpx.Client(base_url=servers[model].url, timeout=60, headers=HEADERS) as client:
        for field in fields:
            for value in (HALF, [HALF], {HALF: HALF}):
                check(client.post(path, content=json.dumps(MINIMAL[model, path] | {field: value})))
