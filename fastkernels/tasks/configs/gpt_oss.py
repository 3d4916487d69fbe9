"""GPT-OSS's sizes, as its L4 class reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastkernels.errors import CheckpointError, UnsupportedError
from fastkernels.tasks.configs.llama import LlamaConfig
from fastkernels.tasks.configs.rope import RopeScaling, YarnScaling

__all__ = ["GptOssConfig"]

_YARN = YarnScaling(32.0, 4096, truncate=False)
_KINDS = ("sliding_attention", "full_attention")
_OWN = (
    *("num_local_experts", "num_experts_per_tok", "sliding_window", "layer_types"),
    *("swiglu_alpha", "swiglu_limit"),
)


@dataclass(frozen=True)
class GptOssConfig(LlamaConfig):
    """Llama's sizes and those of the experts and windows; defaults are those of transformers' GptOssConfig.

    intermediate_size: of one expert. layer_types: of each layer, "sliding_attention" or "full_attention"; None: in
    turn. sliding_window: tokens that a sliding layer sees, the newest included. quantization: None, or "mxfp4" where
    the checkpoint's experts are.
    Errors:  those of LlamaConfig; ValueError when a token wants more experts than there are or layer_types does not
             name every layer's kind.
    """

    head_dim: int | None = 64
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    rope_theta: float = 150000.0
    rope_scaling: RopeScaling | YarnScaling | None = _YARN
    attention_bias: bool = True
    num_local_experts: int = 128
    num_experts_per_tok: int = 4
    sliding_window: int = 128
    layer_types: tuple[str, ...] | None = None
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0
    quantization: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        types = self.layer_types or tuple(_KINDS[i % 2] for i in range(self.num_hidden_layers))
        object.__setattr__(self, "layer_types", tuple(types))
        if len(types) != self.num_hidden_layers or set(types) - set(_KINDS):
            raise ValueError(f"layer_types must name one of {_KINDS} for each of {self.num_hidden_layers} layers.")
        if not 1 <= self.num_experts_per_tok <= self.num_local_experts:
            raise ValueError(
                f"num_experts_per_tok must be in [1, num_local_experts {self.num_local_experts}], "
                f"got {self.num_experts_per_tok}."
            )
        if self.sliding_window < 1:
            raise ValueError(f"sliding_window must be positive, got {self.sliding_window}.")

    @property
    def num_experts(self) -> int:
        return self.num_local_experts

    def window_of(self, layer: int) -> int | None:
        assert self.layer_types is not None
        return self.sliding_window if self.layer_types[layer] == _KINDS[0] else None

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> GptOssConfig:
        """From a config.json of any transformers version.

        Errors: CheckpointError when it is another model's or a key is missing; UnsupportedError for a quantisation
            other than MXFP4; those of the class.
        """
        if config.get("model_type", "gpt_oss") != "gpt_oss":
            raise CheckpointError(f"config.json is of model_type {config['model_type']!r}, not 'gpt_oss'.")
        method = (config.get("quantization_config") or {}).get("quant_method")
        if method not in (None, "mxfp4"):
            raise UnsupportedError(f"GPT-OSS with quant_method {method!r} is not supported; 'mxfp4' and none are.")
        shared = super().from_hf({"num_key_value_heads": 8, "head_dim": 64, **config, "model_type": "llama"})
        assert isinstance(shared, GptOssConfig)
        own = {name: config[name] for name in _OWN if config.get(name) is not None}
        return replace(shared, **{"layer_types": None, **own}, quantization=method)

    @classmethod
    def tiny(cls, vocab_size: int = 512, **changes: Any) -> GptOssConfig:
        """Two layers that a CPU runs in milliseconds, one of them with a window of nine tokens."""
        sizes: dict[str, Any] = {
            "intermediate_size": 32,
            "head_dim": 16,
            "rope_theta": 150000.0,
            "rope_scaling": YarnScaling(8.0, 64, truncate=False),
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "sliding_window": 9,
            "quantization": "mxfp4",
        }
        made = super().tiny(vocab_size, **{**sizes, **changes})
        assert isinstance(made, GptOssConfig)
        return made
