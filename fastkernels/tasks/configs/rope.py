"""How a rotary embedding's frequencies are stretched beyond the length a model was first trained at."""

from __future__ import annotations

import math
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


@dataclass(frozen=True)
class YarnScaling:
    """YaRN: frequencies that turn less than beta_slow times within the trained length are divided by `factor`, those
    that turn more than beta_fast times kept, between them a blend over their numbers; cos and sin are scaled too.

    Units:   length in tokens. truncate: the blend begins and ends at whole numbers. attention_factor: of cos and sin;
             None is 0.1 * ln(factor) + 1.
    Errors:  ValueError when a number is out of range.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        if self.factor < 1 or self.original_max_position_embeddings < 1:
            raise ValueError(
                "rope scaling factor and original_max_position_embeddings must be at least 1, "
                f"got {self.factor} and {self.original_max_position_embeddings}."
            )
        if not 0 < self.beta_slow < self.beta_fast:
            raise ValueError(f"YaRN needs 0 < beta_slow < beta_fast, got {self.beta_slow} and {self.beta_fast}.")

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied by."""
        return 0.1 * math.log(self.factor) + 1 if self.attention_factor is None else self.attention_factor


def rope_from_hf(config: Mapping[str, Any], default_theta: float) -> tuple[float, RopeScaling | YarnScaling | None]:
    """(theta, scaling) of a config.json: `rope_scaling` with `rope_type` or `type`, or `rope_parameters`.

    Errors: CheckpointError names a missing key; UnsupportedError a kind of scaling that is not here.
    """
    values = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = values.get("rope_theta", config.get("rope_theta", default_theta))
    kind = values.get("rope_type", values.get("type", "default"))
    if kind == "default":
        return float(theta), None
    if kind == "yarn":
        return float(theta), _yarn_from_hf(values)
    if kind != "llama3":
        raise UnsupportedError(f"rope scaling of type {kind!r} is not supported; 'default', 'llama3' and 'yarn' are.")
    missing = [name for name in RopeScaling.__dataclass_fields__ if name not in values]
    if missing:
        raise CheckpointError(f"The config's llama3 rope scaling lacks {', '.join(missing)}.")
    return float(theta), RopeScaling(
        factor=float(values["factor"]),
        low_freq_factor=float(values["low_freq_factor"]),
        high_freq_factor=float(values["high_freq_factor"]),
        original_max_position_embeddings=int(values["original_max_position_embeddings"]),
    )


def _yarn_from_hf(values: Mapping[str, Any]) -> YarnScaling:
    missing = [name for name in ("factor", "original_max_position_embeddings") if values.get(name) is None]
    if missing:
        raise CheckpointError(f"The config's yarn rope scaling lacks {', '.join(missing)}.")
    if values.get("mscale") or values.get("mscale_all_dim"):
        raise UnsupportedError("YaRN with mscale is not supported; without, or with attention_factor, it is.")
    given = {name: values[name] for name in YarnScaling.__dataclass_fields__ if values.get(name) is not None}
    return YarnScaling(**given)
