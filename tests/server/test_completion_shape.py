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
