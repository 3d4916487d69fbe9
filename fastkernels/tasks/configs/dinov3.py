"""DINOv3's sizes, as its L4 class reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fastkernels.errors import CheckpointError, UnsupportedError

__all__ = ["DINOv3Config"]


@dataclass(frozen=True)
class DINOv3Config:
    """Defaults are those of transformers' DINOv3ViTConfig, so that a key absent from config.json means the same.

    image_size: pixels a side that the pipeline resizes to; the model itself takes any multiple of patch_size.
    Errors:  ValueError when sizes do not fit together; UnsupportedError for what the ViTs of this family lack.
    """

    patch_size: int = 16
    hidden_size: int = 384
    intermediate_size: int = 1536
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    num_channels: int = 3
    image_size: int = 224
    num_register_tokens: int = 0
    hidden_act: str = "gelu"
    use_gated_mlp: bool = False
    layer_norm_eps: float = 1e-5
    rope_theta: float = 100.0
    query_bias: bool = True
    key_bias: bool = False
    value_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    torch_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("patch_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads or self.head_size % 4:
            raise ValueError(
                f"hidden_size {self.hidden_size} over num_attention_heads {self.num_attention_heads} must be a "
                "multiple of 4: two axes, two numbers an angle."
            )
        wanted = "silu" if self.use_gated_mlp else "gelu"
        if self.hidden_act != wanted:
            raise UnsupportedError(f"hidden_act {self.hidden_act!r} is not supported here; {wanted!r} is.")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_prefix_tokens(self) -> int:
        """The class token and the registers, which have no place in the image."""
        return 1 + self.num_register_tokens

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DINOv3Config:
        """From a config.json. Errors: CheckpointError when it is another model's; those of the class."""
        if config.get("model_type", "dinov3_vit") != "dinov3_vit":
            raise CheckpointError(f"config.json is of model_type {config['model_type']!r}, not 'dinov3_vit'.")
        known = {f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None}
        dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
        return cls(**{**known, "torch_dtype": dtype})

    @classmethod
    def tiny(cls, **changes: Any) -> DINOv3Config:
        """Two layers of two heads, with registers and the gated feed-forward block of the 7B model."""
        sizes: dict[str, Any] = {
            "patch_size": 8,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "num_register_tokens": 4,
            "hidden_act": "silu",
            "use_gated_mlp": True,
            "query_bias": False,
            "value_bias": False,
        }
        return cls(**{**sizes, **changes})
