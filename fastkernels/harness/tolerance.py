"""How far an answer may lie from the definition, per op, dtype and input family: frozen, with provenance.

The published table bounds single elements. Beside it a manifest, measured by harness/calibrate.py,
holds the production path's own error against the definition in float64; K times that error bounds
rows and bias, so that a kernel may be as inexact as the one in production and no more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

K = 4.0
"""Multiple of the production path's error that an answer may have."""

MANIFEST = Path(__file__).with_name("tolerances.json")


@dataclass(frozen=True)
class Tolerance:
    """An element may be off by max(atol + rtol * |y|, element * rms of its row); a row's rms error by
    row * rms of the row; the mean signed relative error by bias."""

    atol: float
    rtol: float
    element: float
    row: float
    bias: float

    def to_json(self) -> dict[str, float]:
        return {"atol": self.atol, "rtol": self.rtol, "element": self.element, "row": self.row, "bias": self.bias}

    def scaled(self, factor: float) -> Tolerance:
        return Tolerance(*(factor * v for v in (self.atol, self.rtol, self.element, self.row, self.bias)))

    def widened(self, element: float, row: float, bias: float) -> Tolerance:
        """At least these bounds: the baseline's own error on the very same inputs, times K."""
        return replace(self, element=max(self.element, element), row=max(self.row, row), bias=max(self.bias, bias))


@dataclass(frozen=True)
class Error:
    """How far one answer lay off. element: largest |error| over its row's rms; row: largest relative rms
    error of a row; bias: mean of error * sign(y) over mean |y|; max_abs: largest |error|."""

    element: float = 0.0
    row: float = 0.0
    bias: float = 0.0
    max_abs: float = 0.0

    def worst(self, other: Error) -> Error:
        pairs = zip(self.values(), other.values(), strict=True)
        return Error(*(max(a, b) for a, b in pairs))

    def values(self) -> tuple[float, float, float, float]:
        return self.element, self.row, self.bias, self.max_abs


@cache
def manifest() -> dict[str, Any]:
    return json.loads(MANIFEST.read_text())


def unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def tolerance_for(op: str, dtype: torch.dtype, family: str, num_elements: int) -> Tolerance:
    """The frozen tolerance of one answer of `num_elements` elements.

    A family that was not measured (captured) takes the widest of the op's families but the
    deliberately ill-conditioned ones.
    """
    data = manifest()
    name = str(dtype).removeprefix("torch.")
    table = data["published"][name]
    measured = data["measured"].get(op, {}).get(name, {})
    if family in measured:
        error = Error(**measured[family])
    else:
        error = Error()
        for other in ("normal", "heavy_tailed"):
            if other in measured:
                error = error.worst(Error(**measured[other]))
    roundoff = unit_roundoff(dtype)
    row_floor = data["row_floor"][name]
    return Tolerance(
        atol=table["atol"],
        rtol=table["rtol"],
        element=K * error.element,
        row=max(K * error.row, row_floor),
        bias=max(K * error.bias, row_floor / 4) + 3 * roundoff / max(num_elements, 1) ** 0.5,
    )
