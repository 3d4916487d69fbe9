"""How /v1/completions tells answers, of outputs made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from fastkernels.engine.detokenizer import Vocabulary
from fastkernels.engine.outputs import CompletionOutput, RequestOutput, TokenLogprobs
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.server.completions import CompletionShape
from fastkernels.server.generation import Job, Prompt
from fastkernels.server.protocol import CompletionBody
from fastkernels.workloads import byte_tokenizer
from fastkernels.workloads.tokenizer import END_TOKEN

VOCABULARY = Vocabulary(byte_tokenizer())
PROMPT = tuple(range(40, 60))
SCORES = tuple(TokenLogprobs((token,), (-1.0,), 1) for token in PROMPT[1:])


def output(index: int, text: str, token: int) -> RequestOutput:
    """One token of one answer, and what is known of the prompt, as each of a stream's outputs has it."""
    answer = CompletionOutput(index, text, (token,), None, None, (TokenLogprobs((token,), (-2.0,), 1),))
    return RequestOutput("r", None, PROMPT, (answer,), False, SCORES)


@pytest.mark.parametrize("asked", [{"prompt_logprobs": 0}, {"prompt_logprobs": 0, "logprobs": 0, "echo": True}])
def test_a_stream_tells_the_prompts_log_probabilities_once_a_choice(asked: dict[str, Any]) -> None:
    body = CompletionBody(prompt=list(PROMPT), n=2, stream=True, **asked)
    shape = CompletionShape(body, Job("r", "m", [Prompt(PROMPT, "hello")], SamplingParams(n=2)), VOCABULARY)
    told: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    for index in (0, 1, 1, 0, 0):
        for chunk in shape.chunks(0, output(index, "" if not told[index] else "x", 50)):
            for choice in chunk["choices"]:
                told[choice["index"]].append(choice)
    for choices in told.values():
        later = len(choices) - 1
        assert later >= 1
        assert [len(choice.get("prompt_logprobs", ())) for choice in choices] == [len(PROMPT)] + [0] * later
        if "echo" in asked:
            assert [len(choice["logprobs"]["tokens"]) for choice in choices] == [len(PROMPT) + 1] + [1] * later


TEXT = "héllo € wide 你好"
CUT = "€".encode()[:2]


def byte_tokens(raw: bytes) -> list[int]:
    """A token for each byte."""
    of_bytes = {
        VOCABULARY.token_bytes(token): token for token in reversed(range(VOCABULARY.tokenizer.get_vocab_size()))
    }
    return [of_bytes[bytes([byte])] for byte in raw]


def said(token: int) -> TokenLogprobs:
    """Of a token among others that are parts of characters too."""
    others = [other for other in byte_tokens(bytes(range(0x80, 0x90))) if other != token][:5]
    return TokenLogprobs((token, *others), (-1.5, *(-2.0 - i for i in range(5))), 1)


def told(prompt: list[int], text: str, pieces: list[tuple[str, list[int]]], **asked: Any) -> dict[str, Any]:
    """A choice's text and logprobs of a stream with such outputs, its chunks joined."""
    body = CompletionBody(prompt=prompt, logprobs=5, **asked)
    job = Job("r", "m", [Prompt(prompt, text)], SamplingParams())
    shape = CompletionShape(body, job, VOCABULARY)
    joined: dict[str, Any] = {"text": ""}
    scores = tuple(map(said, prompt[1:]))
    for piece, tokens in pieces:
        answer = CompletionOutput(0, piece, tuple(tokens), None, None, tuple(map(said, tokens)))
        for chunk in shape.chunks(0, RequestOutput("r", None, tuple(prompt), (answer,), False, scores)):
            (choice,) = chunk["choices"]
            joined["text"] += choice["text"]
            for name, values in choice["logprobs"].items():
                joined.setdefault(name, []).extend(values)
    return joined


@pytest.mark.parametrize("echo", [False, True])
def test_tokens_begin_where_they_stand_in_the_text_however_it_is_cut(echo: bool) -> None:
    prompt, answer = VOCABULARY.tokenizer.encode(TEXT).ids, byte_tokens(TEXT.encode())
    whole = told(prompt, TEXT, [(TEXT, answer)], echo=echo)
    cut = VOCABULARY.detokenizer()
    assert told(prompt, TEXT, [(cut.add([token]), [token]) for token in answer], echo=echo) == whole
    assert whole["text"] == TEXT * (1 + echo)
    assert len(whole["text_offset"]) == len(whole["tokens"]) == len(prompt) * echo + len(answer)
    for token, begin in zip(whole["tokens"], whole["text_offset"], strict=True):
        assert token.startswith("bytes:") or whole["text"][begin:].startswith(token)
    inner = whole["text_offset"][-3:]
    assert inner == [len(whole["text"]) - 1] * 3


def test_what_follows_a_character_that_is_never_whole_begins_behind_it() -> None:
    answer = byte_tokens(CUT + b"a")
    offsets = told([60], "x", [("\ufffda", answer)])["text_offset"]
    assert offsets == [0, 0, 1]


def test_every_part_of_a_character_has_its_own_log_probability() -> None:
    got = told([60], "x", [("\ufffd", byte_tokens(CUT))])
    assert got["tokens"] == [r"bytes:\xe2", r"bytes:\x82"]
    for token, logprob, top in zip(got["tokens"], got["token_logprobs"], got["top_logprobs"], strict=True):
        assert top[token] == logprob == -1.5
        assert len(top) == 6


def test_special_tokens_take_no_room_where_the_text_lacks_them() -> None:
    end = VOCABULARY.tokenizer.token_to_id(END_TOKEN)
    ab = byte_tokens(b"ab")
    assert told([end, *ab], "ab", [("b", [ab[1], end])], echo=True)["text_offset"] == [0, 0, 1, 2, 3]
    assert told([end, *ab], f"{END_TOKEN}ab", [("b", [])], echo=True)["text_offset"][1:] == [
        len(END_TOKEN),
        len(END_TOKEN) + 1,
    ]
