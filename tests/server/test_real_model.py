"""What needs logits, on the tiny model and the CPU."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI

from fastkernels.server.local import LocalServer, running_server

MODEL = "tiny-llama"
MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def real() -> Iterator[LocalServer]:
    with running_server(MODEL, "--device", "cpu") as running:
        yield running


@pytest.fixture(scope="module")
def real_client(real: LocalServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat_streams_token_by_token(real_client: OpenAI) -> None:
    asked = {"model": MODEL, "messages": MESSAGES, "max_tokens": 24, "temperature": 0}
    chunks = list(real_client.chat.completions.create(**asked, stream=True))
    texts = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert len(texts) > 8
    assert "".join(texts) == real_client.chat.completions.create(**asked).choices[0].message.content


def test_chat_logprobs_are_of_the_tokens_that_were_made(real_client: OpenAI) -> None:
    done = real_client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    said = done.choices[0].logprobs.content
    assert len(said) == 6
    for one in said:
        assert len(one.top_logprobs) == 3
        assert one.logprob == one.top_logprobs[0].logprob <= 0
        values = [top.logprob for top in one.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-5
    raw = b"".join(bytes(one.bytes) for one in said)
    assert raw.decode("utf-8", errors="replace") == done.choices[0].message.content


def test_bad_words_are_not_said(real: LocalServer) -> None:
    asked = {"model": MODEL, "prompt": "Hello", "max_tokens": 12, "temperature": 0, "return_token_ids": True}
    first = httpx.post(f"{real.url}/v1/completions", json=asked).json()["choices"][0]["token_ids"]
    words = {t: httpx.post(f"{real.url}/detokenize", json={"tokens": [t]}).json()["prompt"] for t in first}
    barred, word = next((token, text) for token, text in words.items() if text.isascii() and text.strip() == text)
    done = httpx.post(f"{real.url}/v1/completions", json={**asked, "bad_words": [word]}).json()["choices"][0]
    assert barred in first
    assert barred not in done["token_ids"]
    refused = httpx.post(f"{real.url}/v1/completions", json={**asked, "bad_words": [""]})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "bad_words"


@pytest.mark.parametrize("stream", [False, True])
def test_echo_scores_the_prompt(real_client: OpenAI, stream: bool) -> None:
    asked = {"model": MODEL, "prompt": "Hello there", "max_tokens": 2, "echo": True, "logprobs": 2, "temperature": 0}
    if stream:
        parts = [c for chunk in real_client.completions.create(**asked, stream=True) for c in chunk.choices]
    else:
        parts = list(real_client.completions.create(**asked).choices)
    tokens = [token for part in parts for token in part.logprobs.tokens]
    values = [value for part in parts for value in part.logprobs.token_logprobs]
    offsets = [offset for part in parts for offset in part.logprobs.text_offset]
    text = "".join(part.text for part in parts)
    assert text.startswith("Hello there")
    assert "".join(tokens).startswith("Hello there")
    assert values[0] is None
    assert all(value <= 0 for value in values[1:])
    assert len(tokens) == len(values) == len(offsets)
    assert offsets == [sum(map(len, tokens[:i])) for i in range(len(tokens))]


def test_a_prompt_is_scored_without_an_answer(real_client: OpenAI) -> None:
    done = real_client.completions.create(model=MODEL, prompt="Hello", max_tokens=0, echo=True, logprobs=0)
    assert "".join(done.choices[0].logprobs.tokens) == "Hello"
    assert done.choices[0].logprobs.token_logprobs[0] is None


def test_prompt_logprobs_come_by_token_id(real: LocalServer) -> None:
    asked = {"prompt": [40, 50, 60], "max_tokens": 1, "prompt_logprobs": 1}
    (choice,) = httpx.post(f"{real.url}/v1/completions", json=asked).json()["choices"]
    assert choice["prompt_logprobs"][0] is None
    assert "50" in choice["prompt_logprobs"][1]
    assert "60" in choice["prompt_logprobs"][2]


def test_a_schema_is_kept_to(real_client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    done = real_client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=100,
        seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    assert json.loads(done.choices[0].message.content)["a"] in ("x", "y")


@pytest.mark.parametrize(
    ("structured", "says"),
    [({"regex": "("}, "regex"), ({"grammar": "root ::= nothing"}, "grammar"), ({"json": "{"}, "json")],
)
def test_a_broken_grammar_is_a_400(real: LocalServer, structured: dict, says: str) -> None:
    asked = {"prompt": "x", "structured_outputs": structured}
    response = httpx.post(f"{real.url}/v1/completions", json=asked)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"].lower()


def test_a_choice_is_one_of_them(real: LocalServer) -> None:
    asked = {"prompt": "x", "max_tokens": 20, "structured_outputs": {"choice": ["yes", "no"]}}
    (choice,) = httpx.post(f"{real.url}/v1/completions", json=asked).json()["choices"]
    assert choice["text"] in ("yes", "no")
    assert choice["finish_reason"] == "stop"


def test_kernels_say_what_serves_each_op(real: LocalServer) -> None:
    data = httpx.get(f"{real.url}/v1/kernels").json()["data"]
    assert {"op", "class", "set", "status", "num_calls"} <= set(data[0])
    assert all(line["num_calls"] is None for line in data if line["status"] == "BASELINE"), "These are not counted."
    assert "rms_norm" in {one["op"] for one in data}
