"""BGE-M3's sizes, as its L4 class reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fastkernels.errors import CheckpointError, UnsupportedError

__all__ = ["BGEM3Config"]

_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class BGEM3Config:
    """An XLM-RoBERTa; defaults are those of transformers' XLMRobertaConfig, so that an absent key means the same.

    max_position_embeddings: rows of the table; the first pad_token_id + 1 of them belong to no token of a text.
    Errors:  ValueError when sizes do not fit together; UnsupportedError for another activation or kind of position.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    position_embedding_type: str = "absolute"
    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2
    torch_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in (*_REQUIRED, "type_vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}."
            )
        if self.max_num_tokens < 1:
            raise ValueError(
                f"max_position_embeddings {self.max_position_embeddings} leaves no token behind pad_token_id "
                f"{self.pad_token_id}."
            )
        for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(f"{name} {getattr(self, name)} is not in [0, {self.vocab_size}), the vocabulary.")
        if self.hidden_act != "gelu" or self.position_embedding_type != "absolute":
            raise UnsupportedError(
                f"BGE-M3 is computed with 'gelu' and 'absolute' positions, not {self.hidden_act!r} and "
                f"{self.position_embedding_type!r}."
            )

    @property
    def max_num_tokens(self) -> int:
        """Of one text, those that begin and end it included."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> BGEM3Config:
        """From a config.json.

        Errors: CheckpointError when it is another model's or a key is missing; those of the class.
        """
        if config.get("model_type", "xlm-roberta") != "xlm-roberta":
            raise CheckpointError(f"config.json is of model_type {config['model_type']!r}, not 'xlm-roberta'.")
        missing = [name for name in _REQUIRED if config.get(name) is None]
        if missing:
            raise CheckpointError(f"config.json lacks {', '.join(missing)}.")
        names = [f.name for f in fields(cls) if f.name != "torch_dtype"]
        known = {name: config[name] for name in names if config.get(name) is not None}
        return cls(**known, torch_dtype=config.get("dtype") or config.get("torch_dtype") or "float32")

    @classmethod
    def tiny(cls, **changes: Any) -> BGEM3Config:
        """Two layers."""
        sizes: dict[str, Any] = {
            "vocab_size": 131,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 130,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
        }
        return cls(**{**sizes, **changes})
