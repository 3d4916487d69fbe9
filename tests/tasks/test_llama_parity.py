"""Llama against transformers: the same checkpoint, logits within 1e-4 and the same 64 greedy tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from paged_batches import PagedRun
from torch import Tensor

from fastkernels.tasks.baseline.L1.rotary_emb import RotaryEmbedding
from fastkernels.tasks.baseline.L4.llama import LlamaForCausalLM
from fastkernels.tasks.baseline.rotary_table import inverse_frequencies
from fastkernels.tasks.configs.llama import LlamaConfig, RopeScaling
from fastkernels.weights import load_weights

NUM_NEW = 64
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "eos_token_id": None,
    "bos_token_id": None,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gqa": {"num_key_value_heads": 2, "rope_parameters": LLAMA3},
    "mha": {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    "tied": {
        "vocab_size": 301,
        "num_key_value_heads": 1,
        "head_dim": 24,
        "tie_word_embeddings": True,
        "rope_parameters": LLAMA3,
    },
}


def make_oracle(name: str) -> transformers.LlamaForCausalLM:
    torch.manual_seed(17)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, **CONFIGS[name]})).eval()
    for param_name, param in model.named_parameters():
        is_norm = "norm" in param_name
        param.data.normal_(mean=float(is_norm), std=0.1 if param.dim() == 1 else param.shape[1] ** -0.5)
    return model


@pytest.fixture(scope="module", params=list(CONFIGS))
def oracle(request: pytest.FixtureRequest) -> tuple[str, transformers.LlamaForCausalLM]:
    return request.param, make_oracle(request.param)


def load_ours(directory: Path) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig.from_hf(json.loads((directory / "config.json").read_text())))
    load_weights(model, directory)
    return model


@pytest.fixture(scope="module")
def pair(
    oracle: tuple[str, transformers.LlamaForCausalLM], tmp_path_factory: pytest.TempPathFactory
) -> tuple[transformers.LlamaForCausalLM, LlamaForCausalLM]:
    directory = tmp_path_factory.mktemp(oracle[0])
    oracle[1].save_pretrained(directory)
    return oracle[1], load_ours(directory)


def oracle_logits(model: transformers.LlamaForCausalLM, tokens: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


def oracle_greedy(model: transformers.LlamaForCausalLM, prompt: list[int], num_new: int) -> list[int]:
    tokens, past, fed = list(prompt), None, prompt
    for _ in range(num_new):
        with torch.no_grad():
            out = model(torch.tensor([fed]), past_key_values=past, use_cache=True)
        past, fed = out.past_key_values, [int(out.logits[0, -1].argmax())]
        tokens += fed
    return tokens


def prompts(lengths: tuple[int, ...], vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("is_sharded", [False, True])
def test_prefill_logits_equal_transformers(
    oracle: tuple[str, transformers.LlamaForCausalLM], is_sharded: bool, tmp_path: Path
) -> None:
    model = oracle[1]
    model.save_pretrained(tmp_path, **({"max_shard_size": "50KB"} if is_sharded else {}))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == is_sharded
    ours = load_ours(tmp_path)
    batch = prompts((1, 7, 33, 130), model.config.vocab_size)
    logits = PagedRun(ours, batch, 160, seed=3).step({i: len(p) for i, p in enumerate(batch)})
    for i, prompt in enumerate(batch):
        expected = oracle_logits(model, prompt)
        assert logits[i].shape == expected.shape
        assert (logits[i] - expected).abs().max() < 1e-4


def test_greedy_tokens_and_logits_equal_transformers_in_mixed_batches(
    pair: tuple[transformers.LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    """Prompts enter at different steps, in chunks of different sizes, while the others decode."""
    model, ours = pair
    batch = prompts((1, 19, 40, 77), model.config.vocab_size)
    chunks, entries = (1, 19, 16, 23), (0, 2, 0, 5)
    expected = [oracle_greedy(model, prompt, NUM_NEW) for prompt in batch]
    run = PagedRun(ours, batch, 77 + NUM_NEW + 1, seed=11)
    computed: list[list[Tensor]] = [[] for _ in batch]
    targets = [len(p) + NUM_NEW for p in batch]
    for step in range(200):
        new = {
            i: min(chunks[i] if run.num_computed[i] < len(batch[i]) else 1, len(tokens) - run.num_computed[i])
            for i, tokens in enumerate(run.tokens)
            if step >= entries[i] and run.num_computed[i] < targets[i]
        }
        if not new:
            break
        for i, logits in run.step(new).items():
            computed[i].append(logits)
            if run.num_computed[i] == len(run.tokens[i]) < targets[i]:
                run.tokens[i].append(int(logits[-1].argmax()))
    assert run.tokens == expected
    for i, tokens in enumerate(expected):
        assert (torch.cat(computed[i]) - oracle_logits(model, tokens)).abs().max() < 1e-4


def test_decode_only_batches_equal_transformers(
    pair: tuple[transformers.LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    """One prefill batch, then batches of single tokens: the other two attention ops."""
    model, ours = pair
    batch = prompts((5, 16, 31), model.config.vocab_size)
    run = PagedRun(ours, batch, 31 + NUM_NEW + 1, seed=2)
    logits = run.step({i: len(p) for i, p in enumerate(batch)})
    for _ in range(NUM_NEW):
        for i, rows in logits.items():
            run.tokens[i].append(int(rows[-1].argmax()))
        logits = run.step(dict.fromkeys(range(len(batch)), 1))
    for i, prompt in enumerate(batch):
        assert run.tokens[i] == oracle_greedy(model, prompt, NUM_NEW)
        assert (logits[i][-1] - oracle_logits(model, run.tokens[i])[-1]).abs().max() < 1e-4


def test_llama3_scaling_beyond_original_length_equals_transformers_and_matters(tmp_path: Path) -> None:
    model = make_oracle("gqa")
    model.save_pretrained(tmp_path)
    ours = load_ours(tmp_path)
    [prompt] = prompts((400,), 512)
    expected = oracle_logits(model, prompt)
    assert (PagedRun(ours, [prompt], 400, seed=1).step({0: 400})[0] - expected).abs().max() < 1e-4
    unscaled = LlamaForCausalLM(LlamaConfig.tiny(rms_norm_eps=1e-6, rope_scaling=None))
    load_weights(unscaled, tmp_path)
    assert (PagedRun(unscaled, [prompt], 400, seed=1).step({0: 400})[0] - expected).abs().max() > 1e-2


def test_inverse_frequencies_of_8b_equal_transformers() -> None:
    config = transformers.LlamaConfig(
        hidden_size=4096,
        num_attention_heads=32,
        max_position_embeddings=131072,
        rope_parameters={**LLAMA3, "rope_theta": 500000.0, "original_max_position_embeddings": 8192},
    )
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config).inv_freq
    ours = inverse_frequencies(128, 500000.0, RopeScaling(8.0, 1.0, 4.0, 8192))
    torch.testing.assert_close(ours.float(), theirs, rtol=2e-6, atol=0)


def test_rotary_table_stays_precise_through_dtype_changes() -> None:
    scaling = RopeScaling(8.0, 1.0, 4.0, 64)
    op = RotaryEmbedding(16, 16, 4096, 10000.0, rope_scaling=scaling)
    exact = torch.outer(torch.arange(4096).double(), inverse_frequencies(16, 10000.0, scaling)).cos()
    assert op.bfloat16().cos_sin_cache.dtype == torch.float32
    assert (op.cos_sin_cache[:, :8] - exact).abs().max() < 1e-7
    assert (op.double().cos_sin_cache[:, :8] - exact).abs().max() < 1e-15


def test_model_built_on_meta_loads_and_stays_tied(tmp_path: Path) -> None:
    model = make_oracle("tied")
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        ours = LlamaForCausalLM(LlamaConfig.from_hf(json.loads((tmp_path / "config.json").read_text())))
    ours.to_empty(device="cpu")
    load_weights(ours, tmp_path)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    [prompt] = prompts((20,), 301)
    logits = PagedRun(ours, [prompt], 20, seed=1).step({0: 20})[0]
    assert (logits - oracle_logits(model, prompt)).abs().max() < 1e-4
