"""Mamba-2's sizes, as its L4 class reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fastkernels.errors import CheckpointError, UnsupportedError

__all__ = ["Mamba2Config"]

_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_heads", "head_dim", "state_size", "n_groups")


def _number(value: Any) -> float:
    """JSON has no infinity: transformers writes {"__float__": "Infinity"}."""
    return float(value["__float__"] if isinstance(value, Mapping) else value)


@dataclass(frozen=True)
class Mamba2Config:
    """Defaults are those of transformers' Mamba2Config, so that a key absent from config.json means the same.

    max_position_embeddings: the model has no positions; a bound for the engine's bookkeeping alone.
    Errors:  ValueError when sizes do not fit together; UnsupportedError for another activation, or a model without
             the gated norm.
    """

    vocab_size: int = 32768
    hidden_size: int = 4096
    num_hidden_layers: int = 64
    num_heads: int = 128
    head_dim: int = 64
    state_size: int = 128
    n_groups: int = 8
    expand: int = 2
    conv_kernel: int = 4
    chunk_size: int = 256
    layer_norm_epsilon: float = 1e-5
    hidden_act: str = "silu"
    use_bias: bool = False
    use_conv_bias: bool = True
    rms_norm: bool = True
    time_step_limit: tuple[float, float] = (0.0, float("inf"))
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 1 << 20
    bos_token_id: int | None = 0
    eos_token_ids: tuple[int, ...] = (2,)
    torch_dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        object.__setattr__(self, "eos_token_ids", tuple(self.eos_token_ids))
        object.__setattr__(self, "time_step_limit", tuple(self.time_step_limit))
        for name in (*_SIZES, "chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.conv_kernel < 2:
            raise ValueError(f"conv_kernel must be at least 2, got {self.conv_kernel}.")
        if self.intermediate_size != self.num_heads * self.head_dim:
            raise ValueError(
                f"expand * hidden_size is {self.intermediate_size}, num_heads * head_dim is "
                f"{self.num_heads * self.head_dim}; they must be equal."
            )
        if self.num_heads % self.n_groups:
            raise ValueError(f"num_heads {self.num_heads} is no multiple of n_groups {self.n_groups}.")
        if self.hidden_act not in ("silu", "swish"):
            raise UnsupportedError(f"hidden_act {self.hidden_act!r} is not supported; 'silu' is.")
        if not self.rms_norm:
            raise UnsupportedError("rms_norm false is not supported: the mixer's output is normed.")

    @property
    def intermediate_size(self) -> int:
        return int(self.expand * self.hidden_size)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Mamba2Config:
        """From a config.json. Errors: CheckpointError when it is another model's; those of the class."""
        if config.get("model_type", "mamba2") != "mamba2":
            raise CheckpointError(f"config.json is of model_type {config['model_type']!r}, not 'mamba2'.")
        known = {f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None}
        eos = config.get("eos_token_id", 2)
        known["eos_token_ids"] = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
        known["torch_dtype"] = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
        if "time_step_limit" in known:
            known["time_step_limit"] = tuple(map(_number, known["time_step_limit"]))
        return cls(**known)

    @classmethod
    def tiny(cls, vocab_size: int = 512, **changes: Any) -> Mamba2Config:
        """Two layers that a CPU runs in milliseconds; two groups of two heads, chunks of 16."""
        sizes: dict[str, Any] = {
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "head_dim": 16,
            "state_size": 16,
            "n_groups": 2,
            "chunk_size": 16,
            "max_position_embeddings": 512,
            "eos_token_ids": (1,),
            "torch_dtype": "float32",
        }
        return cls(**{**sizes, **changes})
