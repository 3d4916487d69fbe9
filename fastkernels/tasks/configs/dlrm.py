"""DLRM's sizes, as its L4 class reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fastkernels.errors import CheckpointError

__all__ = ["DLRMConfig"]


@dataclass(frozen=True)
class DLRMConfig:
    """Names as in MLPerf's DLRMv2.

    max_ids: of one feature of one request; a request with more is refused.
    Errors:  ValueError when sizes do not fit together.
    """

    num_dense_features: int
    num_embeddings_per_feature: tuple[int, ...]
    embedding_dim: int
    dense_arch_layer_sizes: tuple[int, ...]
    over_arch_layer_sizes: tuple[int, ...]
    dcn_num_layers: int
    dcn_low_rank_dim: int
    max_ids: int = 128
    torch_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("num_embeddings_per_feature", "dense_arch_layer_sizes", "over_arch_layer_sizes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} is a list of positive sizes, got {list(getattr(self, name))}.")
        if self.dense_arch_layer_sizes[-1] != self.embedding_dim:
            raise ValueError(
                f"The last of dense_arch_layer_sizes {list(self.dense_arch_layer_sizes)} must be embedding_dim "
                f"{self.embedding_dim}: both are rows of one matrix."
            )
        if min(self.num_dense_features, self.dcn_num_layers, self.dcn_low_rank_dim, self.max_ids) < 1:
            raise ValueError("num_dense_features, dcn_num_layers, dcn_low_rank_dim and max_ids must be positive.")

    @property
    def num_features(self) -> int:
        return len(self.num_embeddings_per_feature)

    @property
    def interaction_size(self) -> int:
        return (self.num_features + 1) * self.embedding_dim

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DLRMConfig:
        """From a config.json of these names. Errors: CheckpointError names keys that are missing."""
        known = {f.name: config[f.name] for f in fields(cls) if f.name in config}
        missing = [f.name for f in fields(cls) if f.name not in known and f.name not in ("max_ids", "torch_dtype")]
        if missing:
            raise CheckpointError(f"config.json lacks {', '.join(missing)}.")
        return cls(**{**known, "torch_dtype": config.get("dtype", "float32")})

    @classmethod
    def tiny(cls, **changes: Any) -> DLRMConfig:
        sizes: dict[str, Any] = {
            "num_dense_features": 5,
            "num_embeddings_per_feature": (10, 37, 3),
            "embedding_dim": 16,
            "dense_arch_layer_sizes": (32, 16),
            "over_arch_layer_sizes": (48, 64, 1),
            "dcn_num_layers": 2,
            "dcn_low_rank_dim": 24,
            "max_ids": 4,
        }
        return cls(**{**sizes, **changes})
