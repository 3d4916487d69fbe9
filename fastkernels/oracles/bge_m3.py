"""BGE-M3 by transformers' XLM-RoBERTa and two layers, as FlagEmbedding lays them out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from fastkernels.oracles.oracle import Answer, Level, Load, Oracle, Request, With, compiled, prompts, randomize

_SIZES: dict[str, Any] = {
    "vocab_size": 301,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 202,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}


class _BGEM3(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.model = transformers.XLMRobertaModel(config)
        self.sparse_linear = nn.Linear(config.hidden_size, 1)
        self.colbert_linear = nn.Linear(config.hidden_size, config.hidden_size)


class BGEM3Oracle(Oracle):
    preset = "bge-m3"
    loads = (Load("documents", (1, 8)), Load("queries", (32,)))
    levels = (
        Level("model.embeddings", "model.embeddings"),
        Level("model.encoder.layer.{i}.attention", "model.encoder.layer.{i}.attention"),
        Level("model.encoder.layer.{i}.output", "model.encoder.layer.{i}.output"),
        Level("model.encoder.layer.{i}", "model.encoder.layer.{i}"),
        Level("model.encoder", "model.encoder", their_output=lambda output: output.last_hidden_state),
        Level("model", "model", their_output=lambda output: output.last_hidden_state),
        Level("sparse_linear", "sparse_linear"),
        Level("colbert_linear", "colbert_linear"),
    )

    def tiny(self) -> Mapping[str, dict[str, Any]]:
        return {
            "published files": _SIZES,
            "one file": {
                **_SIZES,
                "hidden_size": 60,
                "num_attention_heads": 3,
                "type_vocab_size": 2,
                "pad_token_id": 4,
            },
        }

    def build(self, sizes: Mapping[str, Any], seed: int) -> nn.Module:
        return randomize(_BGEM3(transformers.XLMRobertaConfig(**sizes)), seed)

    def save(self, model: nn.Module, folder: Path) -> None:
        """As published, the heads in files of their own; with two kinds of tokens all in one safetensors file."""
        parts: Any = model
        parts.model.save_pretrained(folder)
        heads = {"sparse_linear": parts.sparse_linear, "colbert_linear": parts.colbert_linear}
        if parts.config.type_vocab_size == 1:
            for name, head in heads.items():
                torch.save(head.state_dict(), folder / f"{name}.pt")
            return
        path = folder / "model.safetensors"
        extra = {f"{name}.{key}": t for name, head in heads.items() for key, t in head.state_dict().items()}
        save_file(load_file(path) | extra, path, {"format": "pt"})

    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        """One token, a few, one of them twice, and as many as there are positions."""
        most = sizes["max_position_embeddings"] - sizes.get("pad_token_id", 1) - 1
        texts = prompts((1, 7, 33, most, 2), sizes["vocab_size"] - 5)
        texts = [[token + 5 for token in text] for text in texts]
        texts[2] = [0, *texts[2][:20], *texts[2][:11], 2]
        return [{"input_ids": text} for text in texts]

    def answer(self, model: nn.Module, request: Request) -> Answer:
        parts: Any = model
        ids = torch.tensor([request["input_ids"]])
        with torch.no_grad():
            hidden = parts.model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
            weights = parts.sparse_linear(hidden).relu()[:, 0].tolist()
            multi = normalize(parts.colbert_linear(hidden), dim=-1)[1:]
        largest: dict[int, float] = {}
        for token, weight in zip(request["input_ids"], weights, strict=True):
            if token not in (0, 2, parts.config.pad_token_id) and weight > 0:
                largest[token] = max(weight, largest.get(token, 0.0))
        words = sorted(largest)
        return {
            "dense_vecs": normalize(hidden[0], dim=-1),
            "lexical_token_ids": torch.tensor(words, dtype=torch.int64),
            "lexical_weights": torch.tensor([largest[word] for word in words]),
            "colbert_vecs": multi,
        }

    def save_config(self, model: nn.Module, folder: Path) -> Path:
        path = folder / "config.json"
        config: Any = model.config
        path.write_text(json.dumps({**config.to_dict(), "architectures": ["XLMRobertaModel"]}))
        return path

    def tensors(self, model: nn.Module) -> Iterable[tuple[str, Tensor]]:
        """By the names of the published files."""
        return ((name.removeprefix("model."), t) for name, t in model.state_dict().items())

    def load(self, sizes: Mapping[str, Any], num: int, name: str) -> list[Request]:
        """Documents of a sixteenth to all of the positions (512 to 8192 tokens as published), or queries of a few
        tokens: as many short ones as long ones, by the logarithm."""
        most = sizes["max_position_embeddings"] - sizes.get("pad_token_id", 1) - 1
        low, high = (most // 16, most) if name == "documents" else (8, min(64, most))
        steps = [0.5] if num == 1 else [(i * 7 % num + 0.5) / num for i in range(num)]
        texts = prompts([round(low * (high / low) ** step) for step in steps], sizes["vocab_size"] - 5)
        return [{"input_ids": [token + 5 for token in text]} for text in texts]

    def batch(self, model: Any, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
        """Padded to the longest text; rows: where its tokens are in the batch, one text behind another."""
        texts = [state["input_ids"] for state in states]
        ids = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=model.config.pad_token_id)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
        found = {"input_ids": ids, "attention_mask": mask, "rows": mask.flatten().nonzero()[:, 0]}
        return {name: t.to(next(model.parameters()).device) for name, t in found.items()}

    def forward(self, model: Any, batch: Mapping[str, Any]) -> Answer:
        hidden = model.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        tokens = hidden.flatten(0, 1)[batch["rows"]]
        return {
            "dense_vecs": normalize(hidden[:, 0], dim=-1),
            "token_weights": model.sparse_linear(tokens).relu()[:, 0],
            "colbert_vecs": normalize(model.colbert_linear(tokens), dim=-1),
        }

    def compiled(self, model: Any, mode: str) -> Any:
        return With(model, model=compiled(model.model, mode))

    def measured_against(self, model: nn.Module) -> str:
        return "XLM-RoBERTa of transformers with FlagEmbedding's two layers, texts padded to the longest of a batch"


ORACLE = BGEM3Oracle()
