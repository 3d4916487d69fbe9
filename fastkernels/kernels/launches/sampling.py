"""Sampling, over the vocabularies of the language models."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.kernels.apply_logit_bias import apply_logit_bias
from fastkernels.kernels.apply_penalties import apply_penalties
from fastkernels.kernels.apply_token_bitmask import apply_token_bitmask
from fastkernels.kernels.draw_seeds import draw_seeds
from fastkernels.kernels.greedy_sample import greedy_sample
from fastkernels.kernels.launch import FP32, Launch, floats, ints, longs, meta
from fastkernels.kernels.min_p import min_p
from fastkernels.kernels.top_k_top_p_sample import top_k_top_p_sample
from fastkernels.kernels.top_logprobs import top_logprobs

_VOCABULARIES = {
    "Llama-3.1-8B": 128256,
    "Mixtral-8x7B": 32000,
    "Mamba-Codestral-7B": 32768,
    "Qwen3-Next-80B": 151936,
    "GPT-OSS-120B": 201088,
    "Whisper-large-v3": 51866,
    "Qwen2-VL-7B": 152064,
}


def launches() -> Iterator[Launch]:
    for model, vocab in _VOCABULARIES.items():
        is_first = model == "Llama-3.1-8B"
        for rows in (8, 256):

            def greedy(dtype: torch.dtype, rows: int = rows, vocab: int = vocab) -> None:
                greedy_sample(meta(rows, vocab, dtype=dtype))

            def sample(dtype: torch.dtype, rows: int = rows, vocab: int = vocab) -> None:
                x = meta(rows, vocab, dtype=dtype)
                top_k_top_p_sample(x, floats(rows), longs(rows), floats(rows), longs(rows))

            yield Launch(model, f"greedy_sample of {rows} rows", greedy, is_tested=is_first and rows == 8)
            yield Launch(model, f"top_k_top_p_sample of {rows} rows", sample, is_tested=is_first and rows == 8)
        for number in (0, 20):

            def logprobs(dtype: torch.dtype, number: int = number, vocab: int = vocab) -> None:
                top_logprobs(meta(8, vocab, dtype=dtype), longs(8), number)

            yield Launch(model, f"top_logprobs of {number}", logprobs, is_tested=is_first and number == 20)

        def change(dtype: torch.dtype, vocab: int = vocab) -> None:
            x, rows = meta(8, vocab, dtype=dtype), floats(8)
            apply_logit_bias(x, longs(8, 300), floats(8, 300))
            apply_penalties(x, longs(8), ints(256, vocab), rows, rows, rows)
            apply_token_bitmask(x, ints(8, -(-vocab // 32)), ints(8))
            min_p(x, rows, rows)

        yield Launch(model, "changes of logits", change, is_tested=is_first)
    yield Launch("all", "draw_seeds", lambda _: draw_seeds(longs(256), longs(64), longs(64)), (FP32,), is_tested=True)
