"""Steps of nobody's tokens: what the largest takes of memory, and what warming up compiles ahead of requests.

On the device "meta" the same steps tell which kernels they launch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from fastkernels.context import ForwardContext, Phase, set_forward_context

if TYPE_CHECKING:
    from fastkernels.engine.runners.autoregressive import AutoregressiveRunner

WARM_DECODES = (1, 2, 3, 5, 8, 12, 20, 30, 40, 80, 150, 300, 400)
WARM_LENS = (8, 48, 128, 512, 2048)
"""Sequences, and their tokens, beside a prompt: attention splits few long ones in other ways than many."""
_PROMPT_LEN = 512


@dataclass(frozen=True)
class DummyStep:
    """A token each of num_decodes sequences of so many tokens, then whole prompts of these lengths."""

    prompt_lens: tuple[int, ...]
    num_decodes: int = 0
    decode_len: int = WARM_LENS[-1]

    @property
    def num_tokens(self) -> int:
        return self.num_decodes + sum(self.prompt_lens)

    def context(self, page_size: int) -> ForwardContext:
        """On the CPU; its tokens have no slot, so no cache is written."""
        counts = torch.tensor([1] * self.num_decodes + list(self.prompt_lens), dtype=torch.int32)
        lens = torch.tensor([self.decode_len] * self.num_decodes + list(self.prompt_lens), dtype=torch.int32)
        table = torch.zeros((len(lens), -(-int(lens.max()) // page_size)), dtype=torch.int32)
        nowhere = torch.full((self.num_tokens,), -1, dtype=torch.int64)
        return ForwardContext(
            query_start_loc=torch.cat((torch.zeros(1, dtype=torch.int32), counts.cumsum(0, dtype=torch.int32))),
            seq_lens=lens,
            block_table=table,
            slot_mapping=nowhere,
            max_query_len=int(counts.max()),
            max_seq_len=int(lens.max()),
            phase=Phase.MIXED if self.num_decodes else Phase.PREFILL,
            num_decodes=self.num_decodes,
            window_block_table=table,
            window_slot_mapping=nowhere,
            state_slots=torch.arange(len(lens), dtype=torch.int32),
            has_initial_state=torch.zeros(len(lens), dtype=torch.bool),
        )


def prompts_step(num_tokens: int, max_num_seqs: int, num_decodes: int = 0) -> DummyStep:
    """Prompts of about 512 tokens, as many as so many tokens give and so many sequences allow."""
    num = num_tokens - num_decodes
    num_prompts = max(1, min(num // _PROMPT_LEN, max_num_seqs - num_decodes))
    ends = [num * i // num_prompts for i in range(num_prompts + 1)]
    return DummyStep(tuple(b - a for a, b in itertools.pairwise(ends)), num_decodes)


def warm_steps(max_num_batched_tokens: int, max_num_seqs: int, max_model_len: int) -> Iterator[DummyStep]:
    """Of every power of two tokens: kernels change their tiles somewhere between, and keep them for a while.

    Prompts alone and beside a decode; where they are several also one as long; then few and many decodes beside one.
    """
    most = max_num_batched_tokens
    for num_tokens in sorted({most, *(2**i for i in range(most.bit_length()))}):
        for num_decodes in (0, 1) if num_tokens > 1 else (0,):
            step = prompts_step(num_tokens, max_num_seqs, num_decodes)
            yield step
            one = min(num_tokens - num_decodes, max_model_len)
            if one > max(step.prompt_lens):
                yield DummyStep((one,), num_decodes, min(WARM_LENS[-1], max_model_len))
    for num_decodes, length in itertools.product(WARM_DECODES, WARM_LENS):
        for prompt_len in (2, 64) if num_decodes == 1 else (64,):
            if num_decodes < min(max_num_seqs, most - prompt_len):
                yield DummyStep((min(prompt_len, length),), num_decodes, min(length, max_model_len))


@torch.inference_mode()
def run_dummy_step(
    model: nn.Module, step: DummyStep, page_size: int, max_num_rows: int, num_positions: int, device: torch.device
) -> None:
    """max_num_rows: of logits; num_positions: that the model knows."""
    ids = torch.zeros(step.num_tokens, dtype=torch.int64, device=device)
    positions = torch.arange(step.num_tokens, device=device) % num_positions
    with set_forward_context(step.context(page_size).to(device)):
        logits = model.compute_logits(model(ids, positions)[:max_num_rows])  # type: ignore[operator]
    logits.argmax(-1)


@torch.inference_mode()
def run_dummy_encoder(model: nn.Module, max_num_tokens: int) -> None:
    """One item of as many embeddings as a step has tokens, where the model takes items; what an encoder reads."""
    largest = getattr(model, "largest_multimodal_item", None)
    if largest is not None:
        modality, tensors = largest(max_num_tokens)
        model.embed_multimodal(modality, [tensors])  # type: ignore[operator]
    inputs = getattr(model, "largest_encoder_inputs", None)
    if inputs is not None:
        model.encode(inputs())  # type: ignore[operator]


def warm_parts(
    runner: AutoregressiveRunner, num_positions: int, logits_dtype: torch.dtype
) -> Iterator[Callable[[], None]]:
    """What warming up is made of, to be called in turn: every graph, steps of some sizes, the sampler.

    All on the stream of the steps: torch keeps freed memory by stream, and would take a large step's twice.
    """
    limits, stream = runner.limits, runner.stream

    def run(step: DummyStep) -> None:
        with torch.cuda.stream(stream):
            run_dummy_step(runner.model, step, limits.page_size, limits.max_num_seqs, num_positions, runner.device)

    def warm_sampler() -> None:
        with torch.cuda.stream(stream):
            runner.sampler.warm_up(logits_dtype)

    if runner.graphs is not None:
        for size in reversed(runner.graphs.sizes):
            yield partial(runner.graphs.warm, size)
    for step in warm_steps(limits.max_num_batched_tokens, limits.max_num_seqs, limits.max_model_len):
        yield partial(run, step)
    yield warm_sampler
