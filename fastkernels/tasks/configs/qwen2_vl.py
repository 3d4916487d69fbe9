"""Qwen2-VL's sizes, as its L4 classes read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fastkernels.errors import CheckpointError, UnsupportedError
from fastkernels.tasks.configs.llama import LlamaConfig

__all__ = ["Qwen2VLConfig", "Qwen2VLVisionConfig"]

_TEXT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"),
)
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@dataclass(frozen=True)
class Qwen2VLVisionConfig:
    """Defaults are those of transformers' Qwen2VLVisionConfig.

    hidden_size: of the language model, which the merged patches are given to. max_grid_size: patches a side at most.
    Errors:  ValueError when sizes do not fit together.
    """

    depth: int = 32
    embed_dim: int = 1280
    hidden_size: int = 3584
    hidden_act: str = "quick_gelu"
    mlp_ratio: int = 4
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    max_grid_size: int = 8192

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "hidden_act" and getattr(self, field.name) < 1:
                raise ValueError(f"vision_config.{field.name} must be positive, got {getattr(self, field.name)}.")
        if self.embed_dim % self.num_heads or self.embed_dim // self.num_heads % 4:
            raise ValueError(
                f"vision_config.embed_dim {self.embed_dim} over num_heads {self.num_heads} must be a multiple of 4."
            )

    @property
    def patch_dim(self) -> int:
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Qwen2VLVisionConfig:
        known = {f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None}
        if "in_channels" not in known and config.get("in_chans") is not None:
            known["in_channels"] = config["in_chans"]
        return cls(**known)


@dataclass(frozen=True)
class Qwen2VLConfig:
    """text: the language model's sizes. The token ids stand for pictures and frame them in a prompt.

    Errors:  ValueError when sizes do not fit together; UnsupportedError for a sliding window.
    """

    text: LlamaConfig
    vision: Qwen2VLVisionConfig
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653

    def __post_init__(self) -> None:
        for name in _TOKENS:
            if not 0 <= getattr(self, name) < self.text.vocab_size:
                raise ValueError(f"{name} {getattr(self, name)} is not in [0, {self.text.vocab_size}), the vocabulary.")
        if self.vision.hidden_size != self.text.hidden_size:
            raise ValueError(
                f"vision_config.hidden_size {self.vision.hidden_size} is not the language model's, "
                f"{self.text.hidden_size}."
            )
        section = self.text.mrope_section
        if section is None or sum(section) != self.text.head_size // 2:
            raise ValueError(f"mrope_section {section} does not add up to half of head_dim {self.text.head_size}.")

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def max_position_embeddings(self) -> int:
        return self.text.max_position_embeddings

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self.text.eos_token_ids

    @property
    def torch_dtype(self) -> str:
        return self.text.torch_dtype

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Qwen2VLConfig:
        """From a config.json: the flat one of the published checkpoints, or one with a text_config.

        Errors: CheckpointError when it is another model's or a key is missing; those of the class.
        """
        if config.get("model_type", "qwen2_vl") != "qwen2_vl":
            raise CheckpointError(f"config.json is of model_type {config['model_type']!r}, not 'qwen2_vl'.")
        text: Mapping[str, Any] = {**config, **(config.get("text_config") or {})}
        missing = [name for name in _REQUIRED if text.get(name) is None]
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        missing += [] if rope.get("mrope_section") else ["rope_scaling.mrope_section"]
        if missing:
            raise CheckpointError(f"config.json lacks {', '.join(missing)}.")
        if text.get("use_sliding_window"):
            raise UnsupportedError("use_sliding_window is true; Qwen2-VL is served with full attention only.")
        eos = text.get("eos_token_id", 151645)
        known = {name: text[name] for name in _TEXT if text.get(name) is not None}
        language = LlamaConfig(
            **{"rms_norm_eps": 1e-5, "max_position_embeddings": 32768, **known},
            rope_theta=float(rope.get("rope_theta", text.get("rope_theta", 1000000.0))),
            bos_token_id=text.get("bos_token_id"),
            eos_token_ids=() if eos is None else (eos,) if isinstance(eos, int) else tuple(eos),
            torch_dtype=text.get("dtype") or text.get("torch_dtype") or "bfloat16",
            attention_bias=True,
            attention_out_bias=False,
            mrope_section=tuple(rope["mrope_section"]),
        )
        vision = Qwen2VLVisionConfig.from_hf(
            {"hidden_size": language.hidden_size, **(config.get("vision_config") or {})}
        )
        return cls(language, vision, **{name: config[name] for name in _TOKENS if config.get(name) is not None})

    @classmethod
    def tiny(cls, vocab_size: int = 512, **changes: Any) -> Qwen2VLConfig:
        """Two layers of each tower; the last ids of the vocabulary stand for pictures."""
        text = LlamaConfig.tiny(
            vocab_size,
            **{
                "rope_scaling": None,
                "rope_theta": 1000000.0,
                "attention_bias": True,
                "attention_out_bias": False,
                "mrope_section": (2, 3, 3),
                **changes,
            },
        )
        vision = Qwen2VLVisionConfig(
            depth=2,
            embed_dim=32,
            hidden_size=text.hidden_size,
            mlp_ratio=2,
            num_heads=2,
            patch_size=4,
            max_grid_size=512,
        )
        names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
        return cls(text, vision, **{name: vocab_size - 4 + i for i, name in enumerate(names)})
