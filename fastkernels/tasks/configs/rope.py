"""How a rotary embedding's frequencies are stretched beyond the length a model was first trained at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastkernels.errors import CheckpointError, UnsupportedError


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's scaling: long wavelengths are divided by `factor`, short ones kept, between them a blend.

    Units:   lengths in tokens; wavelengths above original / low_freq_factor are long,
             below original / high_freq_factor short.
    Errors:  ValueError when a number is out of range.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"rope scaling factor must be at least 1, got {self.factor}.")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                "rope scaling needs 0 < low_freq_factor < high_freq_factor, "
                f"got {self.low_freq_factor} and {self.high_freq_factor}."
            )
        if self.original_max_position_embeddings < 1:
            raise ValueError(
                f"original_max_position_embeddings must be positive, got {self.original_max_position_embeddings}."
            )


def rope_from_hf(config: Mapping[str, Any], default_theta: float) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) of a config.json: `rope_scaling` with `rope_type` or `type`, or `rope_parameters`.

    Errors: CheckpointError names a missing key; UnsupportedError a kind of scaling that is not here.
    """
    values = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = values.get("rope_theta", config.get("rope_theta", default_theta))
    kind = values.get("rope_type", values.get("type", "default"))
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise UnsupportedError(f"rope scaling of type {kind!r} is not supported; 'default' and 'llama3' are.")
    missing = [name for name in RopeScaling.__dataclass_fields__ if name not in values]
    if missing:
        raise CheckpointError(f"The config's llama3 rope scaling lacks {', '.join(missing)}.")
    return float(theta), RopeScaling(
        factor=float(values["factor"]),
        low_freq_factor=float(values["low_freq_factor"]),
        high_freq_factor=float(values["high_freq_factor"]),
        original_max_position_embeddings=int(values["original_max_position_embeddings"]),
    )
