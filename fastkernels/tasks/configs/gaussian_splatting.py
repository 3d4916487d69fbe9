"""How scenes of Gaussians are rendered, as the L4 class reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fastkernels.errors import CheckpointError

__all__ = ["GaussianSplattingConfig"]


@dataclass(frozen=True)
class GaussianSplattingConfig:
    """Defaults are those of gsplat's rasterization. A scene is a request's, not the model's.

    sh_degree: of generated scenes; a scene from a file brings its own. isects_per_gaussian, isects_per_tile: the pairs
    of a tile and a Gaussian that a rendering has room for; more are refused, with their number.
    Errors:  ValueError when a number is out of range.
    """

    sh_degree: int = 3
    eps2d: float = 0.3
    near_plane: float = 0.01
    far_plane: float = 1e10
    isects_per_gaussian: int = 16
    isects_per_tile: int = 64
    num_gaussians: int = 2000
    torch_dtype: str = "float32"

    def __post_init__(self) -> None:
        if not 0 <= self.sh_degree <= 3:
            raise ValueError(f"sh_degree is 0 to 3, got {self.sh_degree}.")
        for name in ("eps2d", "near_plane", "far_plane", "isects_per_gaussian", "isects_per_tile", "num_gaussians"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")

    def capacity(self, batch: int, num_gaussians: int, num_tiles: int) -> int:
        return batch * (num_gaussians * self.isects_per_gaussian + num_tiles * self.isects_per_tile)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> GaussianSplattingConfig:
        """From a config.json. Errors: CheckpointError when it is another model's; those of the class."""
        if config.get("model_type", "gaussian_splatting") != "gaussian_splatting":
            raise CheckpointError(f"config.json is of model_type {config['model_type']!r}, not 'gaussian_splatting'.")
        return cls(**{f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None})

    @classmethod
    def tiny(cls, **changes: Any) -> GaussianSplattingConfig:
        return cls(**{"num_gaussians": 60, **changes})
