"""Texts by BGE-M3: a dense vector, weights of their words, a vector for each token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastkernels.engine.model_source import ModelSource, find_tokenizer
from fastkernels.engine.outputs import EMBEDDING
from fastkernels.errors import UsageError
from fastkernels.pipelines.inputs import as_integers
from fastkernels.pipelines.result import Result
from fastkernels.tasks.configs.bge_m3 import BGEM3Config
from fastkernels.workloads import prompts


@dataclass(frozen=True)
class Embedding(Result):
    """tensors: dense_vecs [hidden_size], lexical_token_ids and lexical_weights [num_words], colbert_vecs [tokens - 1,
    hidden_size]: vectors of length one, and the weights above 0 of a text's tokens, the largest of each."""

    token_ids: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def lexical_weights(self) -> dict[int, float]:
        """By token id."""
        ids, weights = (self.tensors[name].tolist() for name in ("lexical_token_ids", "lexical_weights"))
        return dict(zip(ids, weights, strict=True))

    def to_json(self) -> dict[str, Any]:
        return {
            "num_tokens": self.num_tokens,
            "dense_vecs": [float(f"{x:.6g}") for x in self.tensors["dense_vecs"].tolist()],
            "lexical_weights": {str(k): float(f"{v:.6g}") for k, v in self.lexical_weights.items()},
            "colbert_vecs": {"shape": list(self.tensors["colbert_vecs"].shape)},
        }

    def encoded(self) -> tuple[str, bytes]:
        return EMBEDDING, self.tensors["dense_vecs"].numpy().astype("<f4").tobytes()

    def save(self, path: Path) -> None:
        """All vectors as .json or .safetensors. Errors: UsageError for another kind of file."""
        if path.suffix != ".json":
            super().save(path)
            return
        whole = {**self.to_json(), "colbert_vecs": self.tensors["colbert_vecs"].tolist()}
        path.write_text(json.dumps(whole) + "\n", encoding="utf-8")


class BGEM3Pipeline:
    """{"text": ...}, or {"input_ids": [...]} that begin and end as the model wants it -> an Embedding."""

    media_type = EMBEDDING
    texts = ("text",)
    per_request = frozenset({"dense_vecs"})

    def __init__(self, model: nn.Module, config: BGEM3Config, checkpoint: Path | None) -> None:
        self.model: Any = model
        self.config = config
        self.tokenizer = find_tokenizer(ModelSource("", {}, checkpoint))
        self._adds_ends = bool(self.tokenizer.encode("").ids)
        unknown = self.tokenizer.token_to_id("<unk>")
        ends = {config.bos_token_id, config.eos_token_id, config.pad_token_id}
        self._unweighted = torch.tensor(sorted(ends | ({unknown} if unknown is not None else set())))

    def prepare(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Errors: UsageError when there is no text, or more tokens than the model has positions."""
        config = self.config
        if isinstance(inputs.get("text"), str):
            ids = self._encode(inputs["text"])
        elif "input_ids" in inputs:
            ids = inputs["input_ids"]
        else:
            raise UsageError(f"A request has 'text' or 'input_ids', got {', '.join(inputs) or 'nothing'}.")
        tokens = as_integers(ids, "input_ids", "a list of token ids")
        if tokens.dim() != 1 or not len(tokens) or int(tokens.min()) < 0 or int(tokens.max()) >= config.vocab_size:
            shown = (
                list(tokens.shape) if tokens.dim() != 1 or not len(tokens) else f"{int(tokens.min())} to {tokens.max()}"
            )
            raise UsageError(
                f"input_ids is a list of token ids in [0, {config.vocab_size}), at least one; got {shown}."
            )
        if len(tokens) > config.max_num_tokens:
            raise UsageError(
                f"The text has {len(tokens)} tokens; the model takes {config.max_num_tokens}. Nothing is cut off here: "
                "split it, or cut it yourself."
            )
        is_text = (tokens != config.pad_token_id).long()
        return {"input_ids": tokens, "positions": is_text.cumsum(0) * is_text + config.pad_token_id}

    def forward_packed(
        self, batch: dict[str, Tensor], query_start_loc: Tensor, max_query_len: int
    ) -> dict[str, Tensor]:
        hidden_states, multi = self.model(batch["input_ids"], batch["positions"], query_start_loc, max_query_len)
        return {
            "dense_vecs": self.model.dense_of(hidden_states, query_start_loc),
            "token_weights": self.model.sparse_of(hidden_states),
            "colbert_vecs": multi,
            "input_ids": batch["input_ids"],
        }

    def finish(self, result: dict[str, Tensor]) -> Embedding:
        ids, weights = result["input_ids"].cpu(), result["token_weights"].float().cpu()
        words, place = ids.unique(return_inverse=True)
        largest = torch.zeros(len(words)).scatter_reduce(0, place, weights, "amax")
        is_told = (largest > 0) & ~torch.isin(words, self._unweighted)
        tensors = {
            "dense_vecs": result["dense_vecs"].float().cpu(),
            "lexical_token_ids": words[is_told],
            "lexical_weights": largest[is_told],
            "colbert_vecs": result["colbert_vecs"][1:].float().cpu(),
        }
        return Embedding(tensors, tuple(ids.tolist()))

    @staticmethod
    def example_requests(num: int, seed: int) -> list[dict[str, Any]]:
        """Heads of the shipped prompts, of unlike lengths."""
        random, texts = np.random.default_rng(seed), prompts()
        return [{"text": texts[i % len(texts)][: int(random.integers(1, 120))]} for i in range(num)]

    def _encode(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text).ids
        return ids if self._adds_ends else [self.config.bos_token_id, *ids, self.config.eos_token_id]


def sparse_score(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """How much two texts share words: the sum of their weights' products."""
    return sum(weight * b[token] for token, weight in a.items() if token in b)


def multi_vector_score(query: Tensor, passage: Tensor) -> float:
    """The mean over a query's vectors of the likeliest match in a passage. Source: as FlagEmbedding's colbert_score."""
    return float((query @ passage.T).amax(-1).sum() / len(query))
