"""Whisper's sizes, as its L4 classes read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fastkernels.errors import CheckpointError, UnsupportedError

__all__ = ["WhisperConfig"]

_REQUIRED = ("vocab_size", "d_model", "encoder_layers", "decoder_layers")


@dataclass(frozen=True)
class WhisperConfig:
    """Defaults are those of transformers' WhisperConfig.

    max_source_positions: states of the window that the encoder reads, half as many as frames of the spectrogram.
    Errors:  ValueError when sizes do not fit together; UnsupportedError for another activation.
    """

    vocab_size: int = 51865
    d_model: int = 384
    num_mel_bins: int = 80
    encoder_layers: int = 4
    encoder_attention_heads: int = 6
    encoder_ffn_dim: int = 1536
    decoder_layers: int = 4
    decoder_attention_heads: int = 6
    decoder_ffn_dim: int = 1536
    max_source_positions: int = 1500
    max_target_positions: int = 448
    activation_function: str = "gelu"
    tie_word_embeddings: bool = True
    decoder_start_token_id: int = 50257
    eos_token_ids: tuple[int, ...] = (50256,)
    torch_dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "eos_token_ids", tuple(self.eos_token_ids))
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is int and value < 1 and field.name != "decoder_start_token_id":
                raise ValueError(f"{field.name} must be positive, got {value}.")
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            if self.d_model % getattr(self, name):
                raise ValueError(f"d_model {self.d_model} is no multiple of {name} {getattr(self, name)}.")
        if not 0 <= self.decoder_start_token_id < self.vocab_size:
            raise ValueError(
                f"decoder_start_token_id {self.decoder_start_token_id} is not in [0, {self.vocab_size}), the "
                "vocabulary."
            )
        if self.activation_function != "gelu":
            raise UnsupportedError(f"Whisper is computed with 'gelu', not {self.activation_function!r}.")

    @property
    def max_position_embeddings(self) -> int:
        """Tokens of a text, prompt included."""
        return self.max_target_positions

    @property
    def num_frames(self) -> int:
        """Of the spectrogram of one window; the second convolution halves them."""
        return 2 * self.max_source_positions

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> WhisperConfig:
        """From a config.json.

        Errors: CheckpointError when it is another model's or a key is missing; those of the class.
        """
        if config.get("model_type", "whisper") != "whisper":
            raise CheckpointError(f"config.json is of model_type {config['model_type']!r}, not 'whisper'.")
        missing = [name for name in _REQUIRED if config.get(name) is None]
        if missing:
            raise CheckpointError(f"config.json lacks {', '.join(missing)}.")
        names = {f.name for f in fields(cls)} - {"eos_token_ids", "torch_dtype"}
        known = {name: config[name] for name in names if config.get(name) is not None}
        eos = config.get("eos_token_id", 50256)
        return cls(
            **known,
            eos_token_ids=() if eos is None else (eos,) if isinstance(eos, int) else tuple(eos),
            torch_dtype=config.get("dtype") or config.get("torch_dtype") or "float32",
        )

    @classmethod
    def tiny(cls, **changes: Any) -> WhisperConfig:
        """Two layers each, a window of 13 states."""
        sizes: dict[str, Any] = {
            "vocab_size": 131,
            "d_model": 32,
            "num_mel_bins": 12,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "decoder_layers": 2,
            "decoder_attention_heads": 2,
            "decoder_ffn_dim": 56,
            "max_source_positions": 13,
            "max_target_positions": 128,
            "decoder_start_token_id": 3,
            "eos_token_ids": (2,),
        }
        return cls(**{**sizes, **changes})
