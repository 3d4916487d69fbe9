"""Sizes of Pi0's parts, as its L4 classes read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from fastkernels.errors import CheckpointError, UnsupportedError

__all__ = ["GemmaConfig", "PI0Config", "SiglipConfig"]

Part = TypeVar("Part")
_ACTIVATION = "gelu_pytorch_tanh"
_LEROBOT_VARIANTS: dict[str, dict[str, Any]] = {
    "gemma_2b": {},
    "gemma_300m": {"hidden_size": 1024, "intermediate_size": 4096},
}
"""What differs from Gemma 2B, by the names that LeRobot's configurations have
(https://github.com/huggingface/lerobot, policies/pi0)."""


def _known(cls: type[Part], config: Mapping[str, Any]) -> Part:
    """The class from those keys that it has."""
    return cls(**{f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None})  # type: ignore[arg-type]


@dataclass(frozen=True)
class SiglipConfig:
    """The vision tower. Defaults are those of SigLIP so400m at 224 pixels."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = _ACTIVATION
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads or self.image_size % self.patch_size:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not split over {self.num_attention_heads} heads, or image_size "
                f"{self.image_size} over patches of {self.patch_size}."
            )

    @property
    def num_tokens(self) -> int:
        """Of one picture."""
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def tiny(cls, **changes: Any) -> SiglipConfig:
        sizes: dict[str, Any] = {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 21,
            "patch_size": 7,
        }
        return cls(**{**sizes, **changes})


@dataclass(frozen=True)
class GemmaConfig:
    """One of the two transformers. Defaults are those of Gemma 2B."""

    vocab_size: int = 257152
    hidden_size: int = 2048
    intermediate_size: int = 16384
    num_hidden_layers: int = 18
    num_attention_heads: int = 8
    num_key_value_heads: int = 1
    head_dim: int = 256
    hidden_act: str = _ACTIVATION
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    bos_token_id: int = 2

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} heads do not share {self.num_key_value_heads} of keys evenly."
            )
        if self.hidden_act != _ACTIVATION:
            raise UnsupportedError(f"hidden_act {self.hidden_act!r} is not supported; {_ACTIVATION!r} is.")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> GemmaConfig:
        rope = config.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default" or config.get("attention_bias"):
            raise UnsupportedError("Gemma with another rope_type than 'default', or with attention_bias.")
        return _known(cls, {"rope_theta": rope.get("rope_theta"), **config})

    @classmethod
    def tiny(cls, **changes: Any) -> GemmaConfig:
        sizes: dict[str, Any] = {
            "vocab_size": 512,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "head_dim": 8,
            "max_position_embeddings": 256,
        }
        return cls(**{**sizes, **changes})


@dataclass(frozen=True)
class PI0Config:
    """A vision-language model that is read once, and an expert of actions that attends to its keys and values.

    Errors:  ValueError when the parts do not fit each other.
    """

    vision: SiglipConfig = field(default_factory=SiglipConfig)
    text: GemmaConfig = field(default_factory=GemmaConfig)
    expert: GemmaConfig = field(default_factory=lambda: GemmaConfig(hidden_size=1024, intermediate_size=4096))
    chunk_size: int = 50
    max_state_dim: int = 32
    max_action_dim: int = 32
    num_inference_steps: int = 10
    min_period: float = 4e-3
    max_period: float = 4.0
    torch_dtype: str = "float32"

    def __post_init__(self) -> None:
        shared = ("num_hidden_layers", "num_key_value_heads", "head_dim", "num_attention_heads")
        for name in shared:
            if getattr(self.text, name) != getattr(self.expert, name):
                raise ValueError(
                    f"{name} is {getattr(self.text, name)} of the language model and {getattr(self.expert, name)} of "
                    "the expert, which reads its keys and values layer by layer."
                )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> PI0Config:
        """From a config.json of transformers' form, or of LeRobot's, which lerobot/pi0_base has.

        Errors: CheckpointError when it is neither, UnsupportedError of other sizes; those of the class.
        """
        if config.get("type") == "pi0" and "vlm_config" not in config:
            return cls._from_lerobot(config)
        vlm, expert = config.get("vlm_config"), config.get("dit_config")
        if not isinstance(vlm, Mapping) or not isinstance(expert, Mapping):
            raise CheckpointError("config.json has no vlm_config or no dit_config; Pi0's has both.")
        if vlm.get("projection_dim", vlm["text_config"]["hidden_size"]) != vlm["text_config"]["hidden_size"]:
            raise ValueError(f"projection_dim {vlm['projection_dim']} is not the language model's hidden_size.")
        parts = {
            "vision": _known(SiglipConfig, vlm["vision_config"]),
            "text": GemmaConfig.from_hf(vlm["text_config"]),
            "expert": GemmaConfig.from_hf(expert),
        }
        return cls._of_parts(config, parts)

    @classmethod
    def _from_lerobot(cls, config: Mapping[str, Any]) -> PI0Config:
        parts: dict[str, Any] = {}
        for part, key, usual in (
            ("text", "paligemma_variant", "gemma_2b"),
            ("expert", "action_expert_variant", "gemma_300m"),
        ):
            variant = config.get(key, usual)
            if variant not in _LEROBOT_VARIANTS:
                known = " or ".join(map(repr, _LEROBOT_VARIANTS))
                raise UnsupportedError(f"{key} {variant!r} is not supported; {known} is.")
            parts[part] = GemmaConfig(**_LEROBOT_VARIANTS[variant])
        height, width = config.get("image_resolution") or (224, 224)
        if height != width:
            raise UnsupportedError(f"image_resolution [{height}, {width}] is not supported; a square is.")
        return cls._of_parts(config, {**parts, "vision": SiglipConfig(image_size=height)})

    @classmethod
    def _of_parts(cls, config: Mapping[str, Any], parts: Mapping[str, Any]) -> PI0Config:
        own = {f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None}
        dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
        return cls(**{**own, **parts, "torch_dtype": dtype})

    @classmethod
    def tiny(cls, **changes: Any) -> PI0Config:
        sizes: dict[str, Any] = {
            "vision": SiglipConfig.tiny(),
            "text": GemmaConfig.tiny(),
            "expert": GemmaConfig.tiny(hidden_size=20, intermediate_size=28),
            "chunk_size": 5,
            "max_state_dim": 6,
            "max_action_dim": 7,
            "num_inference_steps": 3,
        }
        return cls(**{**sizes, **changes})
