"""Llama by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from fastkernels.oracles.language import LanguageOracle
from fastkernels.oracles.oracle import Answer, Level, Request, greedy_answer, prompts, randomize

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "eos_token_id": None,
    "bos_token_id": None,
}


class LlamaOracle(LanguageOracle):
    preset = "llama-3.1-8b"
    levels = (
        Level("model.layers.{i}.self_attn", "model.layers.{i}.self_attn"),
        Level("model.layers.{i}.mlp", "model.layers.{i}.mlp"),
        Level("model.layers.{i}", "model.layers.{i}", our_output=lambda output: output[0] + output[1]),
        Level("model", "model"),
    )

    def tiny(self) -> Mapping[str, dict[str, Any]]:
        return {
            "gqa": {**_SIZES, "num_key_value_heads": 2, "rope_parameters": _LLAMA3},
            "mha": {**_SIZES, "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
            "tied": {
                **_SIZES,
                "vocab_size": 301,
                "num_key_value_heads": 1,
                "head_dim": 24,
                "tie_word_embeddings": True,
                "rope_parameters": _LLAMA3,
            },
        }

    def build(self, sizes: Mapping[str, Any], seed: int) -> nn.Module:
        return randomize(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)), seed)

    def save(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder)  # type: ignore[operator]

    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        lengths = (1, 7, 33, 100)
        return [{"prompt_token_ids": ids, "max_tokens": 8} for ids in prompts(lengths, sizes["vocab_size"])]

    def answer(self, model: nn.Module, request: Request) -> Answer:
        return greedy_answer(model, request)


ORACLE = LlamaOracle()
