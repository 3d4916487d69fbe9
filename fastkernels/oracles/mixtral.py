"""Mixtral by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from fastkernels.oracles.language import LanguageOracle
from fastkernels.oracles.oracle import Answer, Level, Request, greedy_answer, prompts, randomize

_SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "sliding_window": None,
    "eos_token_id": None,
    "bos_token_id": None,
}


class MixtralOracle(LanguageOracle):
    preset = "mixtral-8x7b-v0.1"
    most_layers = 8
    levels = (
        Level("model.layers.{i}.self_attn", "model.layers.{i}.self_attn"),
        Level(
            "model.layers.{i}.block_sparse_moe.topk_softmax",
            "model.layers.{i}.mlp.gate",
            their_output=lambda output: output[1],
        ),
        Level("model.layers.{i}.block_sparse_moe", "model.layers.{i}.mlp"),
        Level("model.layers.{i}", "model.layers.{i}", our_output=lambda output: output[0] + output[1]),
        Level("model", "model"),
    )

    def tiny(self) -> Mapping[str, dict[str, Any]]:
        return {
            "top2": _SIZES,
            "many_experts": {**_SIZES, "num_local_experts": 61, "num_experts_per_tok": 7, "tie_word_embeddings": True},
            "stacked_experts": {**_SIZES, "head_dim": 24, "num_local_experts": 3, "num_experts_per_tok": 1},
        }

    def build(self, sizes: Mapping[str, Any], seed: int) -> nn.Module:
        return randomize(transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes)), seed)

    def save(self, model: nn.Module, folder: Path) -> None:
        is_published_layout = model.config.num_local_experts != 3  # type: ignore[union-attr]
        model.save_pretrained(folder, save_original_format=is_published_layout)  # type: ignore[operator]

    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        """One token among them, by which most experts get none."""
        lengths = (1, 7, 33, 100)
        return [{"prompt_token_ids": ids, "max_tokens": 8} for ids in prompts(lengths, sizes["vocab_size"])]

    def answer(self, model: nn.Module, request: Request) -> Answer:
        return greedy_answer(model, request)


ORACLE = MixtralOracle()
