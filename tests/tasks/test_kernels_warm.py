"""`--warm full` meets every kernel that a step may ask for, and none waits for the compiler: by name, without a GPU."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from published_models import MODELS, few_layers
from torch import nn

from fastkernels.cache import bind_caches
from fastkernels.context import ForwardContext, Phase, set_forward_context
from fastkernels.engine.cache import allocate_caches
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.dummy_steps import run_dummy_step, warm_steps
from fastkernels.engine.executor import choose_state_dtype
from fastkernels.engine.graphs import graph_sizes
from fastkernels.engine.model_source import build_config, find_model
from fastkernels.engine.sampler import Sampler
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.env import triton_interpreted
from fastkernels.registry import architecture_of

pytest.importorskip("triton")
if triton_interpreted():
    pytest.skip("names what would be compiled, which TRITON_INTERPRET=1 does not", allow_module_level=True)

from fastkernels.kernels.ahead import TensorsOnGpu, naming_for

META = torch.device("meta")
PAGE_SIZE, MAX_TOKENS, MAX_LEN = 16, 8192, 8192
NUM_STEPS = 100


def build(preset: str, num_layers: int, num_rows: int, folder: Path) -> tuple[nn.Module, Any]:
    """The published widths, few layers, no weights."""
    source = find_model(few_layers(preset, num_layers, folder))
    config, architecture = build_config(source), architecture_of(source.hf_config)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with META:
            model = getattr(importlib.import_module(architecture.module), architecture.class_name)(config)
    finally:
        torch.set_default_dtype(torch.float32)
    choose_state_dtype(model, EngineConfig(preset), torch.bfloat16)
    bind_caches(model, allocate_caches(model, 64, PAGE_SIZE, num_rows, torch.bfloat16, META))
    return model, config


def run_step(model: nn.Module, counts: list[int], lens: list[int], num_decodes: int, max_len: int = 0) -> None:
    """A step of the engine: new tokens and all tokens by sequence, decodes first."""
    starts, seq_lens = torch.tensor([0, *counts]).cumsum(0).int(), torch.tensor(lens, dtype=torch.int32)
    table = torch.zeros((len(lens), MAX_LEN // PAGE_SIZE), dtype=torch.int32)
    slots = torch.zeros(sum(counts), dtype=torch.int64)
    is_new = counts == lens
    phase = Phase.PREFILL if is_new else Phase.DECODE if max(counts) == 1 else Phase.MIXED
    context = ForwardContext(
        query_start_loc=starts, seq_lens=seq_lens, block_table=table, slot_mapping=slots, max_query_len=max(counts),
        max_seq_len=max_len or max(lens), phase=phase, num_decodes=num_decodes, window_block_table=table,
        window_slot_mapping=slots, state_slots=torch.arange(len(lens), dtype=torch.int32),
        has_initial_state=torch.tensor([new < all_ for new, all_ in zip(counts, lens, strict=True)]),
    )  # fmt: skip
    ids = torch.zeros(sum(counts), dtype=torch.int64, device=META)
    with torch.inference_mode(), set_forward_context(context.to(META)):
        model.compute_logits(model(ids, ids)[: len(lens)])  # type: ignore[operator]


def drawn_steps(max_num_seqs: int) -> Iterator[tuple[list[int], list[int], int]]:
    """New and all tokens by sequence, and the number of decodes: prompts, chunks and decodes as traffic mixes them."""
    chosen = random.Random(0)
    for _ in range(NUM_STEPS):
        few = chosen.random() < 0.5
        num_decodes = chosen.choice([0, chosen.randint(1, 16 if few else max_num_seqs - 5)])
        length = int(2 ** chosen.uniform(1, 13))
        decodes = [chosen.randint(2, max(2, length)) for _ in range(num_decodes)]
        room, prompts, done = MAX_TOKENS - num_decodes, [], []
        for _ in range(chosen.choice([1, 1, 1, 2, 4])):
            prompts.append(max(2, int(2 ** chosen.uniform(1, 13))))
            done.append(chosen.choice([0, 0, chosen.randint(1, 4000)]))
        while sum(prompts) > room:
            prompts[prompts.index(max(prompts))] //= 2
        every = [a + b for a, b in zip(prompts, done, strict=True)]
        yield [1] * num_decodes + prompts, decodes + [min(n, MAX_LEN) for n in every], num_decodes


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "num_layers", "max_num_seqs"), MODELS)
def test_no_step_asks_for_a_kernel_that_warming_up_did_not_meet(
    preset: str, num_layers: int, max_num_seqs: int, tmp_path: Path
) -> None:
    model, config = build(preset, num_layers, max_num_seqs + 1, tmp_path)
    with TensorsOnGpu(), naming_for() as names:
        for size in graph_sizes(max_num_seqs):
            run_step(model, [1] * size, [2] * size, size, MAX_LEN)
        for step in warm_steps(MAX_TOKENS, max_num_seqs, MAX_LEN):
            run_dummy_step(model, step, PAGE_SIZE, max_num_seqs, config.max_position_embeddings, META)
        known = set(names)
        assert len(known) > 10
        missed = {}
        for num_seqs in range(513, max_num_seqs, 170):  # more than graphs hold
            run_step(model, [1] * num_seqs, [300] * num_seqs, num_seqs)
        for counts, lens, num_decodes in drawn_steps(max_num_seqs):
            before = set(names)
            run_step(model, counts, lens, num_decodes)
            missed |= dict.fromkeys(names - before - known, (counts[num_decodes:], num_decodes, max(lens)))
    told = [f"{name}: prompts of {p}, {n} decodes, up to {longest} tokens" for name, (p, n, longest) in missed.items()]
    assert not told, "\n".join(told)


@pytest.mark.parametrize("vocab_size", [32_000, 128_256])
def test_no_draw_asks_for_a_kernel_that_warming_up_did_not_meet(vocab_size: int) -> None:
    every = [
        SamplingParams(**words)
        for words in (
            {"temperature": 0}, {}, {"top_k": 50, "top_p": 0.9}, {"top_k": 1000}, {"min_p": 0.1}, {"logprobs": 5},
            {"temperature": 0, "logprobs": 1}, {"presence_penalty": 0.3}, {"repetition_penalty": 1.2}, {"seed": 5},
            {"logit_bias": {5: 1.0, 7: 2.0}}, {"allowed_token_ids": (1, 2, 3)},
        )
    ]  # fmt: skip
    with TensorsOnGpu(), naming_for() as names:
        Sampler(vocab_size, META, 512).warm_up(torch.bfloat16)
        known = set(names)
        for num_rows in (1, 3, 16, 100, 131, 140, 300, 512):
            for params in every:
                sampler, rows = Sampler(vocab_size, META, num_rows), torch.arange(num_rows, device=META)
                for row in range(num_rows):
                    sampler.add(row, params, 0, (0, 1, 2))
                logits = torch.zeros((num_rows, vocab_size), dtype=torch.bfloat16, device=META)
                sampler(logits, tuple(range(num_rows)), rows, rows)
    assert names - known == set()
    assert len(known) > 15
