"""V-JEPA 2's sizes, as its L4 classes read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fastkernels.errors import CheckpointError, UnsupportedError

__all__ = ["VJEPA2Config"]

_COUNTS = ("patch_size", "tubelet_size", "hidden_size", "num_hidden_layers", "pred_hidden_size", "pred_num_mask_tokens")


@dataclass(frozen=True)
class VJEPA2Config:
    """Defaults are those of transformers' VJEPA2Config, so that a key absent from config.json means the same.

    crop_size: pixels a side that the pipeline crops to, and by which a patch's place is read from its number; the model
        itself takes any size. frames_per_clip: the most frames that the pipeline takes of a video.
    Errors:  ValueError when sizes do not fit together; UnsupportedError for another activation.
    """

    patch_size: int = 16
    crop_size: int = 256
    frames_per_clip: int = 64
    tubelet_size: int = 2
    hidden_size: int = 1024
    in_chans: int = 3
    num_attention_heads: int = 16
    num_hidden_layers: int = 24
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    num_pooler_layers: int = 3
    pred_hidden_size: int = 384
    pred_num_attention_heads: int = 12
    pred_num_hidden_layers: int = 12
    pred_num_mask_tokens: int = 10
    pred_mlp_ratio: float = 4.0
    num_labels: int = 2
    torch_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for size, heads in (("hidden_size", "num_attention_heads"), ("pred_hidden_size", "pred_num_attention_heads")):
            if getattr(self, size) % getattr(self, heads):
                raise ValueError(f"{size} {getattr(self, size)} does not split over {heads} {getattr(self, heads)}.")
        if self.hidden_act != "gelu":
            raise UnsupportedError(f"hidden_act {self.hidden_act!r} is not supported here; 'gelu' is.")

    @property
    def grid_size(self) -> int:
        """Patches a side of a frame."""
        return self.crop_size // self.patch_size

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> VJEPA2Config:
        """From a config.json. Errors: CheckpointError when it is another model's; those of the class."""
        if config.get("model_type", "vjepa2") != "vjepa2":
            raise CheckpointError(f"config.json is of model_type {config['model_type']!r}, not 'vjepa2'.")
        known = {f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None}
        if "num_labels" not in known and config.get("id2label"):
            known["num_labels"] = len(config["id2label"])
        dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
        return cls(**{**known, "torch_dtype": dtype})

    @classmethod
    def tiny(cls, **changes: Any) -> VJEPA2Config:
        """Two layers of two heads; frames of 4 x 4 patches."""
        sizes: dict[str, Any] = {
            "patch_size": 8,
            "crop_size": 32,
            "frames_per_clip": 4,
            "hidden_size": 36,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "mlp_ratio": 2.5,
            "num_pooler_layers": 1,
            "pred_hidden_size": 32,
            "pred_num_attention_heads": 2,
            "pred_num_hidden_layers": 2,
            "pred_num_mask_tokens": 3,
            "pred_mlp_ratio": 2.0,
            "num_labels": 24,
        }
        return cls(**{**sizes, **changes})
