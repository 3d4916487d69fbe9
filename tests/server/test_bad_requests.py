"""Whatever a client sends, it is told what is off, at once, and the next request is served."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from fastkernels.server.local import LocalServer

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]
DEEP = json.loads("[" * 200 + "]" * 200)
DEEP_PATTERN = {"type": "json_schema", "json_schema": {"schema": {"pattern": "(" * 100_000 + ")" * 100_000}}}

BAD: list[tuple[str, dict[str, Any], str | None, str]] = [
    (COMPLETIONS, {}, "prompt", "required"),
    (COMPLETIONS, {"prompt": None}, "prompt", "null"),
    (COMPLETIONS, {"prompt": []}, "prompt", "empty"),
    (COMPLETIONS, {"prompt": ""}, "prompt", "empty"),
    (COMPLETIONS, {"prompt": ["a", ""]}, "prompt", "empty"),
    (COMPLETIONS, {"prompt": [[]]}, "prompt", "empty"),
    (COMPLETIONS, {"prompt": {"a": 1}}, "prompt", "string"),
    (COMPLETIONS, {"prompt": [1, "a"]}, "prompt", "valid"),
    (COMPLETIONS, {"prompt": [512]}, "prompt", "512; it must be in [0, 512)"),
    (COMPLETIONS, {"prompt": [-1]}, "prompt", "-1; it must be in [0, 512)"),
    (COMPLETIONS, {"prompt": [10**400]}, "prompt", "in [0, 512)"),
    (COMPLETIONS, {"prompt": [[1], [2, 999]]}, "prompt", "999"),
    (COMPLETIONS, {"prompt": [1] * 512}, "prompt", "512 tokens; max_model_len is 512: at most 511"),
    (COMPLETIONS, {"prompt": [1] * 513}, "prompt", "513 tokens; max_model_len is 512: at most 511"),
    (COMPLETIONS, {"prompt": "a" * 1_000_000}, "prompt", "1000000 bytes"),
    (COMPLETIONS, {"prompt": "\ud800"}, "prompt", "lone surrogate"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": 0}, "max_tokens", "max_tokens is 0"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": 10**30}, "max_tokens", "at most 511 fit"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": "5"}, "max_tokens", "integer"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": True}, "max_tokens", "integer"),
    (COMPLETIONS, {"prompt": "x", "n": 0}, "n", "[1, 128]"),
    (COMPLETIONS, {"prompt": "x", "n": 1000}, "n", "[1, 128]"),
    (COMPLETIONS, {"prompt": "x", "temperature": float("nan")}, "temperature", "nan"),
    (COMPLETIONS, {"prompt": "x", "temperature": float("inf")}, "temperature", "inf"),
    (COMPLETIONS, {"prompt": "x", "temperature": 1e300}, "temperature", "1e+300"),
    (COMPLETIONS, {"prompt": "x", "top_p": 0}, "top_p", "(0, 1]"),
    (COMPLETIONS, {"prompt": "x", "top_k": -5}, "top_k", "at least 0"),
    (COMPLETIONS, {"prompt": "x", "min_p": 2}, "min_p", "[0, 1]"),
    (COMPLETIONS, {"prompt": "x", "presence_penalty": 3}, "presence_penalty", "[-2, 2]"),
    (COMPLETIONS, {"prompt": "x", "repetition_penalty": 0}, "repetition_penalty", "0.001"),
    (COMPLETIONS, {"prompt": "x", "seed": -(2**63) - 1}, "seed", "[-2**63, 2**63)"),
    (COMPLETIONS, {"prompt": "x", "logprobs": 21}, "logprobs", "[0, 20]"),
    (COMPLETIONS, {"prompt": "x", "stop": ""}, "stop", "not empty"),
    (COMPLETIONS, {"prompt": "x", "stop": ["a"] * 65}, "stop", "64"),
    (COMPLETIONS, {"prompt": "x", "stop": "a" * 1001}, "stop", "1000"),
    (COMPLETIONS, {"prompt": "x", "stop_token_ids": [512]}, "stop_token_ids", "512"),
    (COMPLETIONS, {"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias", "token ids"),
    (COMPLETIONS, {"prompt": "x", "logit_bias": {"1": 101}}, "logit_bias", "[-100, 100]"),
    (COMPLETIONS, {"prompt": "x", "logit_bias": {"999": 1}}, "logit_bias", "999"),
    (COMPLETIONS, {"prompt": "x", "allowed_token_ids": []}, "allowed_token_ids", "at least one"),
    (COMPLETIONS, {"prompt": "x", "min_tokens": 99}, "min_tokens", "max_tokens"),
    (COMPLETIONS, {"prompt": "x", "suffix": "y"}, "suffix", "at the end only"),
    (COMPLETIONS, {"prompt": "x", "best_of": 3}, "best_of", "must be n"),
    (COMPLETIONS, {"prompt": ["\ud800"] * 5000}, "prompt", "5000 prompts; at most 4096 are taken"),
    (COMPLETIONS, {"prompt": [[999]] * 5000}, "prompt", "5000 prompts; at most 4096 are taken"),
    (COMPLETIONS, {"prompt": ["x"] * 50, "n": 100}, "prompt", "4096"),
    (COMPLETIONS, {"prompt": "x", "stream": "yes"}, "stream", "boolean"),
    (COMPLETIONS, {"prompt": "x", "stream_options": {}}, "stream_options", "needs stream"),
    (CHAT, {"messages": USER, "stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
    (CHAT, {"messages": USER, "stream": True, "prompt_logprobs": 1}, "prompt_logprobs", "does not tell"),
    (COMPLETIONS, {"prompt": "x", "structured_outputs": {}}, "structured_outputs", "exactly one"),
    (COMPLETIONS, {"prompt": "x", "structured_outputs": {"json": {"a": DEEP}}}, "structured_outputs", "nested"),
    (COMPLETIONS, {"prompt": "x", "structured_outputs": {"regex": "(" * 999}}, "structured_outputs.regex", "most 200"),
    (CHAT, {"messages": USER, "response_format": DEEP_PATTERN}, "structured_outputs.json", "at most 131072"),
    (CHAT, {}, "messages", "required"),
    (CHAT, {"messages": []}, "messages", "empty"),
    (CHAT, {"messages": "hi"}, "messages", "list"),
    (CHAT, {"messages": [{"role": "king", "content": "x"}]}, "messages", "'system'"),
    (CHAT, {"messages": [{"role": "user", "content": "\udfff"}]}, "messages", "surrogate"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "image_url"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "tool_calls": [{"a": DEEP}]}]}, "messages", "nested"),
    (CHAT, {"messages": USER, "top_logprobs": 3}, "top_logprobs", "logprobs"),
    (CHAT, {"messages": USER, "tool_choice": "required"}, "tool_choice", "auto"),
    (CHAT, {"messages": USER, "tools": [{"a": DEEP}]}, "tools", "nested"),
    (CHAT, {"messages": USER, "response_format": {"type": "xml"}}, "response_format", "json_object"),
    (CHAT, {"messages": USER, "response_format": {"type": "json_schema"}}, "response_format", "schema"),
    (CHAT, {"messages": USER, "max_completion_tokens": 600}, "max_tokens", "fit"),
    (CHAT, {"messages": [{"role": "user", "content": "word " * 800}]}, "messages", "max_model_len"),
    ("/v1/embeddings", {"input": "x", "dimensions": 3}, "dimensions", "model's size"),
    ("/v1/embeddings", {"input": []}, "input", "empty"),
    ("/v1/embeddings", {"input": ["\ud800"] * 5000}, "input", "5000 prompts; at most 4096 are taken"),
    ("/v1/embeddings", {"input": "x", "encoding_format": "int8"}, "encoding_format", "base64"),
    ("/tokenize", {}, "prompt", "either"),
    ("/tokenize", {"prompt": "\ud83d"}, "prompt", "surrogate"),
    ("/detokenize", {"tokens": [999]}, "tokens", "999"),
    ("/abort", {}, "request_id", "required"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param", "says"), BAD, ids=lambda v: v if isinstance(v, str) else None)
def test_bad_input_is_a_400_that_names_field_and_limit(
    server: LocalServer, path: str, body: dict[str, Any], param: str, says: str
) -> None:
    response = httpx.post(server.url + path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 1000


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'"x"', b"3", b"\xff\xfe", b"[" * 100_000, b'{"prompt":' * 50_000, b"1" * 10_000],
    ids=["empty", "open", "null", "list", "text", "number", "bytes", "deep", "deep-objects", "digits"],
)
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/v1/embeddings", "/tokenize", "/detokenize", "/abort"])
def test_a_body_that_is_no_object_is_a_400(server: LocalServer, path: str, content: bytes) -> None:
    response = httpx.post(server.url + path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_a_missing_content_type_is_a_400(server: LocalServer) -> None:
    response = httpx.post(server.url + COMPLETIONS, content=b'{"prompt": "x"}', headers={"content-type": "text/plain"})
    assert response.status_code == 400
    assert "application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_over_the_limit_is_a_413(server: LocalServer, is_chunked: bool) -> None:
    body = b'{"prompt": "' + b"a" * 10_000_000 + b'"}'
    content = (body[i : i + 65536] for i in range(0, len(body), 65536)) if is_chunked else body
    response = httpx.post(server.url + COMPLETIONS, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert "8388608" in response.json()["error"]["message"]


def test_an_unknown_route_and_a_wrong_method_are_told(server: LocalServer) -> None:
    assert httpx.get(f"{server.url}/v1/nothing").status_code == 404
    assert httpx.get(server.url + COMPLETIONS).status_code == 405


def test_an_unknown_model_is_a_404_even_with_a_broken_name(server: LocalServer) -> None:
    body = json.dumps({"model": "\ud800", "prompt": "x"})
    response = httpx.post(server.url + COMPLETIONS, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_rejecting_takes_no_step_and_little_time(server: LocalServer) -> None:
    """The best of five of each body: other tests take the processor from any one of them."""

    def steps() -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("fastkernels_steps_total "))

    def seconds(client: httpx.Client, path: str, content: str) -> float:
        start = time.perf_counter()
        client.post(path, content=content, headers={"content-type": "application/json"})
        return time.perf_counter() - start

    before = steps()
    some = [(path, content) for path, body, _, _ in BAD if len(content := json.dumps(body)) < 100_000]
    with httpx.Client(base_url=server.url) as client:
        best = [min(seconds(client, *one) for _ in range(5)) for one in some]
    assert steps() == before
    assert sorted(best)[len(best) // 2] < 0.05


def test_the_next_request_is_served(server: LocalServer) -> None:
    assert httpx.post(server.url + COMPLETIONS, json={"prompt": "x"}).status_code == 200
