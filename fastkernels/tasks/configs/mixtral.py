"""Mixtral's sizes, as its L4 class reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastkernels.errors import CheckpointError, UnsupportedError
from fastkernels.tasks.configs.llama import LlamaConfig

__all__ = ["MixtralConfig"]


@dataclass(frozen=True)
class MixtralConfig(LlamaConfig):
    """Llama's sizes and those of the experts; defaults are those of transformers' MixtralConfig.

    intermediate_size: of one expert. sliding_window: None, as published; one that no sequence outgrows is as good.
    Errors:  those of LlamaConfig; ValueError when a token wants more experts than there are; UnsupportedError for a
             window below max_position_embeddings.
    """

    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_experts_per_tok <= self.num_local_experts:
            raise ValueError(
                f"num_experts_per_tok must be in [1, num_local_experts {self.num_local_experts}], "
                f"got {self.num_experts_per_tok}."
            )
        if self.sliding_window is not None and self.sliding_window < self.max_position_embeddings:
            raise UnsupportedError(
                f"Mixtral attends to all tokens here: sliding_window {self.sliding_window} must be null or at least "
                f"max_position_embeddings {self.max_position_embeddings}."
            )

    @property
    def num_experts(self) -> int:
        return self.num_local_experts

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> MixtralConfig:
        """From a config.json of any transformers version.

        Errors: CheckpointError when it is another model's or a key is missing; those of the class.
        """
        if config.get("model_type", "mixtral") != "mixtral":
            raise CheckpointError(f"config.json is of model_type {config['model_type']!r}, not 'mixtral'.")
        known = {"num_key_value_heads": 8, **config, "model_type": "llama"}
        shared = super().from_hf(known)
        assert isinstance(shared, MixtralConfig)
        own = ("num_local_experts", "num_experts_per_tok", "sliding_window")
        return replace(shared, **{name: config[name] for name in own if name in config})

    @classmethod
    def tiny(cls, vocab_size: int = 512, **changes: Any) -> MixtralConfig:
        """Two layers that a CPU runs in milliseconds: eight experts, two of them for each token."""
        sizes: dict[str, Any] = {"intermediate_size": 48, "rope_scaling": None, "rope_theta": 1e6}
        made = super().tiny(vocab_size, **{**sizes, **changes})
        assert isinstance(made, MixtralConfig)
        return made
