"""Qwen3-Next's sizes, as its L4 class reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fastkernels.errors import CheckpointError, UnsupportedError
from fastkernels.tasks.configs.rope import RopeScaling, rope_from_hf

__all__ = ["Qwen3NextConfig"]

_POSITIVE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim"),
    *("linear_value_head_dim", "moe_intermediate_size", "shared_expert_intermediate_size", "decoder_sparse_step"),
    *("full_attention_interval", "max_position_embeddings"),
)


@dataclass(frozen=True)
class Qwen3NextConfig:
    """Defaults are those of transformers' Qwen3NextConfig, so that a key absent from config.json means the same.

    layer_types: "full_attention" or "linear_attention" of every layer; empty: every full_attention_interval-th is full.
    Errors:  ValueError when sizes do not fit together; UnsupportedError for another activation.
    """

    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 48
    num_attention_heads: int = 16
    num_key_value_heads: int = 2
    head_dim: int = 256
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    partial_rotary_factor: float = 0.25
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    full_attention_interval: int = 4
    layer_types: tuple[str, ...] = ()
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()
    num_experts: int = 512
    num_experts_per_tok: int = 10
    norm_topk_prob: bool = True
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    torch_dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("eos_token_ids", "layer_types", "mlp_only_layers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for heads, keys in (
            ("num_attention_heads", "num_key_value_heads"),
            ("linear_num_value_heads", "linear_num_key_heads"),
        ):
            if getattr(self, heads) % getattr(self, keys):
                raise ValueError(f"{heads} {getattr(self, heads)} is no multiple of {keys} {getattr(self, keys)}.")
        if self.rotary_dim < 2 or self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise ValueError(
                f"partial_rotary_factor {self.partial_rotary_factor} of head_dim {self.head_dim} turns "
                f"{self.rotary_dim} dimensions; an even number of at least 2 is needed."
            )
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"layer_types names {len(self.layer_types)} of {self.num_hidden_layers} layers.")
        if unknown := set(self.layer_types) - {"full_attention", "linear_attention"}:
            raise UnsupportedError(f"A layer of type {min(unknown)!r} is not supported.")
        if self.num_experts and not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(f"num_experts_per_tok {self.num_experts_per_tok} is not in [1, {self.num_experts}].")
        if self.linear_conv_kernel_dim < 2:
            raise ValueError(f"linear_conv_kernel_dim must be at least 2, got {self.linear_conv_kernel_dim}.")
        if self.hidden_act != "silu":
            raise UnsupportedError(f"hidden_act {self.hidden_act!r} is not supported; 'silu' is.")

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self.partial_rotary_factor)

    def is_full_attention(self, layer: int) -> bool:
        if self.layer_types:
            return self.layer_types[layer] == "full_attention"
        return (layer + 1) % self.full_attention_interval == 0

    def is_sparse(self, layer: int) -> bool:
        """Whether the layer's feed-forward block is a mixture of experts."""
        return (
            self.num_experts > 0 and layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0
        )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Qwen3NextConfig:
        """From a config.json. Errors: CheckpointError when it is another model's; those of the class."""
        if config.get("model_type", "qwen3_next") != "qwen3_next":
            raise CheckpointError(f"config.json is of model_type {config['model_type']!r}, not 'qwen3_next'.")
        known = {f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None}
        theta, scaling = rope_from_hf(config, default_theta=cls.rope_theta)
        if scaling is not None and not isinstance(scaling, RopeScaling):
            raise UnsupportedError(f"Qwen3-Next has no rope scaling of {type(scaling).__name__}.")
        rope = config.get("rope_parameters") or {}
        known |= {"rope_theta": theta, "rope_scaling": scaling}
        if rope.get("partial_rotary_factor") is not None:
            known["partial_rotary_factor"] = rope["partial_rotary_factor"]
        eos = config.get("eos_token_id")
        known["eos_token_ids"] = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
        known["torch_dtype"] = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
        return cls(**known)

    @classmethod
    def tiny(cls, vocab_size: int = 512, **changes: Any) -> Qwen3NextConfig:
        """Two layers of the one kind and one of the other; grouped heads, eight experts and a shared one."""
        sizes: dict[str, Any] = {
            "vocab_size": vocab_size,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 3,
            "full_attention_interval": 2,
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
            "bos_token_id": 0,
            "eos_token_ids": (1,),
            "torch_dtype": "float32",
        }
        return cls(**{**sizes, **changes})
