"""LightGCN's sizes, as its L4 class reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fastkernels.errors import CheckpointError

__all__ = ["LightGCNConfig"]


@dataclass(frozen=True)
class LightGCNConfig:
    """Users are the first num_users nodes, items the others.

    graph: the checkpoint's file with "edge_index"; None: num_edges drawn by seed, of users with items.
    Errors:  ValueError when a size is not positive.
    """

    num_users: int
    num_items: int
    embedding_dim: int = 64
    num_layers: int = 3
    graph: str | None = None
    num_edges: int = 0
    torch_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("num_users", "num_items", "embedding_dim", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")

    @property
    def num_nodes(self) -> int:
        return self.num_users + self.num_items

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> LightGCNConfig:
        """From a config.json of these names. Errors: CheckpointError names keys that are missing."""
        missing = [name for name in ("num_users", "num_items") if name not in config]
        if missing:
            raise CheckpointError(f"config.json lacks {', '.join(missing)}.")
        known = {f.name: config[f.name] for f in fields(cls) if f.name in config}
        return cls(**{**known, "torch_dtype": config.get("dtype", "float32")})

    @classmethod
    def tiny(cls, **changes: Any) -> LightGCNConfig:
        sizes: dict[str, Any] = {"num_users": 13, "num_items": 29, "embedding_dim": 16, "num_layers": 2}
        return cls(**{**sizes, **changes})
