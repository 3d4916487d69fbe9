"""Routes beside OpenAI's, and what is written down of requests."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from waiting import gauges, wait_until

from fastkernels import __version__
from fastkernels.engine.chat import ChatTemplate, ChatTemplateError, find_chat_template
from fastkernels.errors import InputFileError
from fastkernels.server.errors import ApiError
from fastkernels.server.local import LocalServer, running_server
from fastkernels.server.protocol import Message
from fastkernels.workloads import byte_tokenizer


def test_tokens_of_a_text_and_back(server: LocalServer) -> None:
    asked = {"prompt": "Hello 你好", "return_token_strs": True}
    told = httpx.post(f"{server.url}/tokenize", json=asked).json()
    assert told["tokens"] == byte_tokenizer().encode("Hello 你好").ids
    assert (told["count"], told["max_model_len"]) == (len(told["tokens"]), 512)
    assert len(told["token_strs"]) == told["count"]
    back = httpx.post(f"{server.url}/detokenize", json={"tokens": told["tokens"]}).json()
    assert back == {"prompt": "Hello 你好"}


def test_tokens_of_messages_are_those_of_a_chat(server: LocalServer) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    count = httpx.post(f"{server.url}/tokenize", json={"messages": messages}).json()["count"]
    asked = {"messages": messages, "max_tokens": 1}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=asked).json()["usage"]["prompt_tokens"] == count


def test_the_version_is_told(server: LocalServer) -> None:
    assert httpx.get(f"{server.url}/version").json() == {"version": __version__}


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_whether_it_lives_may_be_asked_by_head(server: LocalServer, path: str) -> None:
    answer = httpx.head(server.url + path)
    assert (answer.status_code, answer.content) == (200, b"")


def test_abort_ends_a_request_by_its_id(long_server: LocalServer) -> None:
    """With all of its prompts, and another request that came with the same id."""
    asked = {"prompt": ["x", "y"], "max_tokens": 50_000, "ignore_eos": True}
    url, headers = f"{long_server.url}/v1/completions", {"x-request-id": "mine"}
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(httpx.post, url, json=asked, headers=headers, timeout=60) for _ in range(2)]
        wait_until(lambda: gauges(long_server.url)["num_requests_running"] == 4)
        ids = {"request_id": ["cmpl-mine", "unknown"]}
        assert httpx.post(f"{long_server.url}/abort", json=ids).json() == {"aborted": ["cmpl-mine"]}
        answers = [one.result() for one in running]
    for done in answers:
        assert [choice["finish_reason"] for choice in done.json()["choices"]] == ["abort"] * 2
        assert done.headers["x-request-id"] == "cmpl-mine"
    wait_until(lambda: gauges(long_server.url)["num_requests_running"] == 0)


def test_metrics_are_prometheus_and_count(server: LocalServer) -> None:
    before = gauges(server.url)
    httpx.post(f"{server.url}/v1/completions", json={"prompt": "Hello", "max_tokens": 5, "ignore_eos": True})
    httpx.post(f"{server.url}/v1/completions", json={"prompt": ""})
    after = gauges(server.url)
    assert after["generation_tokens_total"] - before["generation_tokens_total"] == 5
    assert after["time_to_first_token_seconds_count"] - before["time_to_first_token_seconds_count"] == 1
    assert after["e2e_request_latency_seconds_count"] - before["e2e_request_latency_seconds_count"] == 1
    families = {f.name: f for f in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)}
    outcomes = {(s.labels["outcome"], s.labels["status"]) for s in families["fastkernels_requests"].samples if s.labels}
    assert {("finished", "200"), ("rejected", "400")} <= outcomes
    names = ("num_free_pages", "num_requests_waiting", "preemptions", "graph_step_ratio", "inter_token_latency_seconds")
    assert {f"fastkernels_{name}" for name in names} <= set(families)


def test_every_request_is_one_line_of_json(server: LocalServer) -> None:
    headers = {"x-request-id": "logged"}
    httpx.post(f"{server.url}/v1/completions", json={"prompt": "Hello", "max_tokens": 5}, headers=headers)

    def logged() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in server.log.splitlines() if line.endswith("}")]
        return [line for line in lines if line.get("request_id") == "cmpl-logged"]

    wait_until(lambda: bool(logged()))  # it is written when the answer has been sent
    (line,) = logged()
    assert (line["outcome"], line["status"], line["path"]) == ("finished", 200, "/v1/completions")
    assert line["prompt_tokens"] == len(byte_tokenizer().encode("Hello").ids)
    assert 0 < line["first_output_ms"] <= line["e2e_ms"]
    ready = next(line for line in map(json.loads, server.log.splitlines()) if line["event"] == "ready")
    assert (ready["kv_cache_tokens"], ready["full_length_requests"], ready["max_num_seqs"]) == (8192, 16, 256)


def requests_of(server: LocalServer) -> list[tuple[str, str, int]]:
    """Method, path and status of each that was written down."""
    lines = [json.loads(line) for line in server.log.splitlines() if line.endswith("}")]
    return [(x["method"], x["path"], x["status"]) for x in lines if x["event"] == "request"]


def test_what_is_refused_is_written_down_whatever_its_path() -> None:
    """And what is not: of what machines ask all the time, that all is well."""
    with running_server("tiny-llama", "--device", "fake", "--api-key", "k") as server:
        key = {"authorization": "Bearer k"}
        assert requests_of(server) == [], "It was asked whether it is ready until it was."
        for path in ("/health", "/ready", "/metrics"):
            assert httpx.get(server.url + path).status_code == 200
        expected = [("GET", path, 200) for path in ("/v1/models", "/v1/kernels", "/version", "/openapi.json")]
        for method, path, status in expected:
            assert httpx.request(method, server.url + path, headers=key).status_code == status
        refused = [("GET", "/v1/models", 401), ("GET", "/v1/kernels", 401), ("POST", "/metrics", 405)]
        for method, path, status in refused:
            assert httpx.request(method, server.url + path).status_code == status
        wait_until(lambda: len(requests_of(server)) == len(expected) + len(refused))
        assert requests_of(server) == expected + refused
        families = {f.name: f for f in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)}
        told = {
            (s.labels["route"], s.labels["outcome"], s.labels["status"]): s.value
            for s in families["fastkernels_requests"].samples
            if s.name.endswith("_total")
        }
        assert told[("/v1/models", "rejected", "401")] == told[("/metrics", "rejected", "405")] == 1
        assert told[("/v1/models", "finished", "200")] == 1


def test_kernels_are_listed(server: LocalServer) -> None:
    told = httpx.get(f"{server.url}/v1/kernels").json()
    assert told["object"] == "list"
    assert isinstance(told["data"], list)


def test_another_name_may_be_served(tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% if messages|length > 1 %}{{ raise_exception('one at a time') }}{% endif %}{{ messages[0].content }}"
    )
    names = ("--served-model-name", "a/b", "--served-model-name", "c", "--chat-template", str(template))
    with running_server("tiny-llama", "--device", "fake", *names) as server:
        models = httpx.get(f"{server.url}/v1/models").json()["data"]
        assert [model["id"] for model in models] == ["a/b", "c"]
        assert httpx.get(f"{server.url}/v1/models/a/b").json()["id"] == "a/b"
        assert (
            httpx.post(f"{server.url}/v1/completions", json={"model": "tiny-llama", "prompt": "x"}).status_code == 404
        )
        one = [{"role": "user", "content": "Hello"}]
        url = f"{server.url}/v1/chat/completions"
        answer = httpx.post(url, json={"model": "c", "messages": one}).json()
        assert answer["usage"]["prompt_tokens"] == len(byte_tokenizer().encode("Hello").ids)
        refused = httpx.post(url, json={"messages": one * 2})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")
        assert "one at a time" in refused.json()["error"]["message"]


def test_a_template_runs_in_a_sandbox() -> None:
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ChatTemplateError, match="unsafe"):
        ChatTemplate(escape).render([{"role": "user", "content": "x"}])


def save_tokenizer(folder: Path, template: str) -> None:
    """As transformers does, with a beginning token of the checkpoint's own."""
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, "bos_token": "<|end_of_text|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_a_checkpoints_own_template_is_used(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "<{{ messages[0]['content'] }}>{{ tools }}")
    template = find_chat_template(str(tmp_path))
    assert template.render([{"role": "user", "content": "x"}]) == "<x>None"
    with pytest.raises(ChatTemplateError):
        template.render([])


TEMPLATE = """{{ bos_token }}{% if tools %}{{ tools | tojson(indent=1) }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- if 'content' in message %}{% generation %}[{{ message.content }}]{% endgeneration %}{% endif %}
    {%- if loop.index > 2 %}{% break %}{% endif %}
{%- endfor %}{{ strftime_now('%Y') | length }}"""


def test_a_template_renders_from_a_file_as_from_the_checkpoint(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, TEMPLATE)
    file = tmp_path / "own.jinja"
    file.write_text(TEMPLATE)
    tools = [{"type": "function", "function": {"name": "it's", "description": "<ä> & \u4f60"}}]
    messages = [{"role": role, "content": text} for role, text in (("system", "s"), ("user", "it's"), ("user", "z"))]
    messages[2]["content"] = None
    own = find_chat_template(str(tmp_path)).render(messages * 2, tools)
    assert own.startswith("<|end_of_text|>[")
    assert "it's" in own
    assert own.endswith("[it's]4")
    assert find_chat_template(str(tmp_path), file).render(messages * 2, tools) == own
    bare = find_chat_template("tiny-llama", file).render(messages * 2, tools)
    assert bare == own.replace("<|end_of_text|>", "<|begin_of_text|>", 1)
    file.write_text("{% for %}")
    with pytest.raises(InputFileError, match="cannot be parsed"):
        find_chat_template(str(tmp_path), file)


QWEN_TOOLS = """{% for message in messages %}{% for tool_call in message.tool_calls or [] %}<tool_call>
{"name": "{{ tool_call.function.name }}", "arguments": {{ tool_call.function.arguments | tojson }}}
</tool_call>{% endfor %}{{ message.content }}{% endfor %}"""


def tool_call(arguments: Any) -> Message:
    calls = [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}]
    return Message.model_validate({"role": "assistant", "content": None, "tool_calls": calls})


@pytest.mark.parametrize("arguments", ['{"city": "Köln", "days": 2}', {"city": "Köln", "days": 2}, "", None])
def test_a_template_writes_the_arguments_of_a_tool_call_once(tmp_path: Path, arguments: Any) -> None:
    save_tokenizer(tmp_path, QWEN_TOOLS)
    given = tool_call(arguments)
    wanted = '{"city": "Köln", "days": 2}' if arguments else "{}"
    told = f'<tool_call>\n{{"name": "weather", "arguments": {wanted}}}\n</tool_call>'
    assert find_chat_template(str(tmp_path)).render([given.for_template()]) == told
    assert ChatTemplate(QWEN_TOOLS).render([given.for_template()]) == told
    assert given == tool_call(arguments)


@pytest.mark.parametrize("arguments", ["{", "[1]", "7", [1], "[" * 100_000, '{"a": ' * 70 + "1" + "}" * 70])
def test_arguments_that_are_no_object_are_refused(arguments: Any) -> None:
    with pytest.raises(ApiError, match="JSON object") as refused:
        tool_call(arguments).for_template()
    assert (refused.value.status, refused.value.param) == (400, "messages")
    assert len(refused.value.message) < 400
