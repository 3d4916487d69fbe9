"""Qwen3-Next by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from fastkernels.oracles.language import LanguageOracle
from fastkernels.oracles.mamba2 import spread_decays
from fastkernels.oracles.oracle import Answer, Level, Request, greedy_answer, prompts, randomize

_SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 40,
    "eos_token_id": None,
    "bos_token_id": None,
}


class Qwen3NextOracle(LanguageOracle):
    preset = "qwen3-next-80b-a3b"
    most_layers = 8
    levels = (
        Level("model.layers.{i}.linear_attn", "model.layers.{i}.linear_attn"),
        Level("model.layers.{i}.self_attn", "model.layers.{i}.self_attn"),
        Level("model.layers.{i}.mlp", "model.layers.{i}.mlp"),
        Level("model.layers.{i}", "model.layers.{i}", our_output=lambda output: output[0] + output[1]),
        Level("model", "model"),
    )

    def tiny(self) -> Mapping[str, dict[str, Any]]:
        return {
            "grouped": _SIZES,
            "awkward": {
                **_SIZES,
                "vocab_size": 301,
                "hidden_size": 52,
                "num_hidden_layers": 3,
                "layer_types": ["full_attention", "linear_attention", "linear_attention"],
                "mlp_only_layers": [1],
                "num_attention_heads": 3,
                "num_key_value_heads": 1,
                "head_dim": 24,
                "linear_num_key_heads": 1,
                "linear_num_value_heads": 3,
                "linear_value_head_dim": 11,
                "linear_conv_kernel_dim": 3,
                "num_experts": 37,
                "num_experts_per_tok": 10,
                "norm_topk_prob": False,
                "attention_bias": True,
                "tie_word_embeddings": True,
            },
        }

    def build(self, sizes: Mapping[str, Any], seed: int) -> nn.Module:
        config = transformers.Qwen3NextConfig(**sizes)
        model = randomize(transformers.Qwen3NextForCausalLM(config), seed)
        spread_decays(model, seed)
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        is_published_layout = not model.config.attention_bias  # type: ignore[union-attr]
        model.save_pretrained(folder, save_original_format=is_published_layout)  # type: ignore[operator]

    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        """One token, primes, and lengths on either side of a chunk's end."""
        lengths = (1, 13, 63, 64, 65, 97, 129)
        return [{"prompt_token_ids": ids, "max_tokens": 6} for ids in prompts(lengths, sizes["vocab_size"])]

    def answer(self, model: nn.Module, request: Request) -> Answer:
        return greedy_answer(model, request)


ORACLE = Qwen3NextOracle()
