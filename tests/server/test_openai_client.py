"""The official client works unchanged."""

from __future__ import annotations

import base64
import struct

import openai
import pytest
from openai import OpenAI

from fastkernels.server.local import LocalServer
from fastkernels.workloads import byte_tokenizer

MODEL = "tiny-llama"
FULL = {"ignore_eos": True}
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"


def test_completion_continues_a_text(client: OpenAI) -> None:
    done = client.completions.create(model=MODEL, prompt="Hello", max_tokens=7, extra_body=FULL)
    (choice,) = done.choices
    assert choice.finish_reason == "length"
    assert choice.text
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(byte_tokenizer().encode("Hello").ids), 7)


def test_text_and_its_token_ids_are_the_same_prompt(client: OpenAI) -> None:
    ids = byte_tokenizer().encode("Hello").ids
    texts = {
        client.completions.create(model=MODEL, prompt=prompt, temperature=0).choices[0].text
        for prompt in ("Hello", ids, ["Hello"], [ids])
    }
    assert len(texts) == 1


def test_batches_and_n_are_numbered_in_order(client: OpenAI) -> None:
    done = client.completions.create(
        model=MODEL, prompt=["one", "two", "three"], n=2, temperature=0, max_tokens=4, extra_body=FULL
    )
    assert sorted(choice.index for choice in done.choices) == list(range(6))
    alone = (
        client.completions.create(model=MODEL, prompt="two", temperature=0, max_tokens=4, extra_body=FULL)
        .choices[0]
        .text
    )
    assert {choice.text for choice in done.choices if choice.index in (2, 3)} == {alone}
    assert done.usage.completion_tokens == 24


def test_token_ids_are_told_whole_and_in_pieces(client: OpenAI) -> None:
    asked = {"model": MODEL, "prompt": "Hello", "max_tokens": 30, "temperature": 0}
    told = {"extra_body": {**FULL, "return_token_ids": True}}
    whole = client.completions.create(**asked, **told).choices[0]
    pieces = [c.choices[0] for c in client.completions.create(**asked, **told, stream=True) if c.choices]
    assert len(whole.token_ids) == 30
    assert [token for piece in pieces for token in piece.token_ids] == whole.token_ids
    assert not hasattr(client.completions.create(**asked).choices[0], "token_ids")


@pytest.mark.parametrize("stop", [None, ["\n\n", "e"]])
def test_streamed_text_is_the_whole_text(client: OpenAI, stop: list[str] | None) -> None:
    asked = {"model": MODEL, "prompt": ["Stream", "this"], "max_tokens": 60, "temperature": 0, "stop": stop, "n": 2}
    whole = client.completions.create(**asked)
    texts, reasons = ["", "", "", ""], [None] * 4
    usages = []
    for chunk in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = reasons[choice.index] or choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usages[-1].completion_tokens == whole.usage.completion_tokens
    assert usages[:-1] == [None] * (len(usages) - 1)


def test_echo_puts_the_prompt_first(client: OpenAI) -> None:
    plain = client.completions.create(model=MODEL, prompt="Hello", temperature=0).choices[0].text
    assert (
        client.completions.create(model=MODEL, prompt="Hello", temperature=0, echo=True).choices[0].text
        == "Hello" + plain
    )
    streamed = client.completions.create(model=MODEL, prompt="Hello", temperature=0, echo=True, stream=True)
    assert "".join(choice.text for chunk in streamed for choice in chunk.choices) == "Hello" + plain


def test_echo_of_nothing_more_is_the_prompt(client: OpenAI) -> None:
    asked = {"model": MODEL, "prompt": "Hello", "echo": True, "max_tokens": 0}
    done = client.completions.create(**asked)
    assert done.choices[0].text == "Hello"
    assert done.usage.completion_tokens == 0
    *_, last = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert last.usage.completion_tokens == 0
    assert last.usage.total_tokens == last.usage.prompt_tokens == done.usage.prompt_tokens


def test_a_stop_text_is_cut_and_named(client: OpenAI) -> None:
    asked = {"model": MODEL, "prompt": "Hello", "temperature": 0, "max_tokens": 40, "extra_body": FULL}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[10:13]
    (choice,) = client.completions.create(**asked, stop=stop).choices
    assert choice.text == whole[: whole.index(stop)]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)


def test_chat_answers(client: OpenAI) -> None:
    done = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=9, n=2, extra_body=FULL)
    assert [choice.message.role for choice in done.choices] == ["assistant"] * 2
    assert done.usage.completion_tokens == 18


def test_chat_fills_the_room_that_is_left(client: OpenAI) -> None:
    done = client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body=FULL)
    assert done.usage.total_tokens == 512


def test_chat_tells_its_token_ids_when_asked(client: OpenAI) -> None:
    asked = {"model": MODEL, "messages": MESSAGES, "max_tokens": 12, "temperature": 0, "n": 2}
    told = asked | {"extra_body": {**FULL, "return_token_ids": True}}
    whole = [choice.token_ids for choice in client.chat.completions.create(**told).choices]
    assert [len(tokens) for tokens in whole] == [12, 12]
    pieces: list[list[int]] = [[], []]
    for chunk in client.chat.completions.create(**told, stream=True):
        for choice in chunk.choices:
            pieces[choice.index] += getattr(choice, "token_ids", [])
    assert pieces == whole
    assert not hasattr(client.chat.completions.create(**asked).choices[0], "token_ids")


def test_chat_stream_begins_with_the_role_and_ends_with_usage(client: OpenAI) -> None:
    asked = {"model": MODEL, "messages": MESSAGES, "max_tokens": 30, "temperature": 0, "n": 2}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    firsts = {}
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            firsts.setdefault(choice.index, choice.delta.role)
            texts[choice.index] += choice.delta.content or ""
    assert firsts == {0: "assistant", 1: "assistant"}
    assert texts == [choice.message.content for choice in whole.choices]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_tools_and_parts_reach_the_template(client: OpenAI) -> None:
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]}]
    plain = client.chat.completions.create(model=MODEL, messages=parts, max_tokens=1).usage.prompt_tokens
    same = client.chat.completions.create(model=MODEL, messages=[MESSAGES[1]], max_tokens=1).usage.prompt_tokens
    more = client.chat.completions.create(model=MODEL, messages=parts, tools=tools, max_tokens=1).usage.prompt_tokens
    none = client.chat.completions.create(
        model=MODEL, messages=parts, tools=tools, tool_choice="none", max_tokens=1
    ).usage.prompt_tokens
    assert plain == same == none < more


def test_the_same_seed_is_the_same_answer(client: OpenAI) -> None:
    def answer(seed: int) -> str:
        asked = {"model": MODEL, "messages": MESSAGES, "seed": seed, "max_tokens": 20}
        return client.chat.completions.create(**asked).choices[0].message.content or ""

    assert answer(3) == answer(3)


def test_a_negative_seed_is_the_one_2_to_the_63_above(client: OpenAI) -> None:
    first, second = (
        client.completions.create(model="tiny-llama", prompt="x", seed=seed, max_tokens=12).choices[0].text
        for seed in (-5, 2**63 - 5)
    )
    assert first == second


def test_vllm_fields_are_taken(client: OpenAI) -> None:
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 3, "ignore_eos": True, "unknown": 1}
    done = client.completions.create(model=MODEL, prompt="Hello", max_tokens=5, logit_bias={"7": 1}, extra_body=extra)
    assert done.usage.completion_tokens == 5


def test_embeddings_are_the_same_as_floats_and_as_base64(client: OpenAI, server: LocalServer) -> None:
    floats = client.embeddings.create(model=MODEL, input=["Hello", "there"], encoding_format="float")
    assert [one.index for one in floats.data] == [0, 1]
    assert floats.usage.prompt_tokens == sum(len(byte_tokenizer().encode(t).ids) for t in ("Hello", "there"))
    default = client.embeddings.create(model=MODEL, input="Hello")  # the client asks for base64 by itself
    assert default.data[0].embedding == pytest.approx(floats.data[0].embedding, rel=1e-6)
    raw = client.embeddings.with_raw_response.create(model=MODEL, input="Hello", encoding_format="base64").http_response
    packed = base64.b64decode(raw.json()["data"][0]["embedding"])
    assert struct.unpack(f"<{len(packed) // 4}f", packed) == pytest.approx(floats.data[0].embedding, rel=1e-6)


@pytest.mark.parametrize(
    ("asked", "error", "param"),
    [
        ({"model": "gpt-5", "prompt": "x"}, openai.NotFoundError, "model"),
        ({"model": MODEL, "prompt": "x", "temperature": -1}, openai.BadRequestError, "temperature"),
        ({"model": MODEL, "prompt": "x", "max_tokens": 513}, openai.BadRequestError, "max_tokens"),
        ({"model": MODEL, "prompt": "x", "n": 0}, openai.BadRequestError, "n"),
    ],
)
def test_errors_are_the_clients_own_exceptions(client: OpenAI, asked: dict, error: type, param: str) -> None:
    with pytest.raises(error) as caught:
        client.completions.create(**asked)
    assert caught.value.param == param
