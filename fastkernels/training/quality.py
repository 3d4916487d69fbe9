"""How good a trained checkpoint's answers are, through the engine: what a damaged model loses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from fastkernels.engine.llm import LLM
from fastkernels.engine.pipeline import Pipeline
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import UsageError
from fastkernels.training.corpus import held_out_texts
from fastkernels.training.digits import digits

__all__ = ["digits_accuracy", "digits_logits", "held_out_bits_per_byte", "held_out_perplexity", "held_out_texts"]


def held_out_perplexity(llm: LLM, texts: Sequence[str]) -> float:
    """exp of the mean negative log-likelihood of every token after each text's first."""
    logprobs = _logprobs(llm, texts)
    return math.exp(-float(np.concatenate(logprobs).mean()))


def held_out_bits_per_byte(llm: LLM, texts: Sequence[str]) -> float:
    """The same in bits, over the bytes of the tokens that were foretold."""
    bits, num_bytes = 0.0, 0
    for text, logprobs in zip(texts, _logprobs(llm, texts), strict=True):
        first = llm.tokenizer.decode([llm.tokenizer.encode(text).ids[0]])
        bits -= float(logprobs.sum()) / math.log(2)
        num_bytes += len(text.encode()) - len(first.encode())
    return bits / num_bytes


def _logprobs(llm: LLM, texts: Sequence[str]) -> list[np.ndarray]:
    """Of each text [num_tokens - 1], of its own tokens. Errors: UsageError for a text of one token or none."""
    outputs = llm.generate(list(texts), SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    found = []
    for output in outputs:
        places = zip(output.prompt_token_ids, output.prompt_logprobs or (), strict=True)
        logprobs = [place[token].logprob for token, place in places if place is not None]
        if not logprobs:
            raise UsageError(f"A text of at least two tokens has a perplexity, got {output.prompt!r}.")
        found.append(np.array(logprobs))
    return found


def digits_logits(pipeline: Pipeline, num: int | None = None) -> torch.Tensor:
    """[num, 10] for the first `num` held-out digits; all when left out."""
    videos = digits()[1].videos[:num]
    return torch.stack([result.tensors["logits"] for result in pipeline.run([{"video": video} for video in videos])])


def digits_accuracy(pipeline: Pipeline, num: int | None = None) -> float:
    """Share of the first `num` held-out digits that the pipeline's likeliest label names; all when left out."""
    labels = torch.from_numpy(digits()[1].labels[:num])
    return float((digits_logits(pipeline, num).argmax(-1) == labels).double().mean())
