"""How far an answer may lie from the definition, per op, dtype and input family: frozen, with provenance.

The published table (harness/tolerances.json) bounds single elements. Beside it harness/measured holds the production
path's own error against the definition in float64, as harness/calibrate.py found it. K times that error bounds rows and
bias; where an op only rounds, K_ROUNDED times it bounds all rows together: sums in another order and a few roundings
more pass.
"""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastkernels.harness.measurements import measured, published

if TYPE_CHECKING:
    from fastkernels.harness.expect import Expectation

K = 4.0
"""Multiple of the production path's error that an answer may have."""
K_ROUNDED = 2.0
"""The same of all rows together, where each element is rounded once: four roundings in a row err twice as much, a
Linear in bf16 whose weights have 8 bits, with a scale for each 8 of them, up to 3.6 times."""


@dataclass(frozen=True)
class Tolerance:
    """An element may be off by max(atol + rtol * |y|, element * rms of its row); a row's rms error by
    row * rms of the row, that of all rows together by all_rows and what chance explains; the mean signed relative
    error by bias and what chance explains. lean: by how much the errors of one row may lean one way together; 0 where
    the only error is that of rounding each element."""

    atol: float
    rtol: float
    element: float
    row: float
    bias: float
    lean: float = 0.0
    all_rows: float = inf

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    def scaled(self, factor: float) -> Tolerance:
        return Tolerance(*(factor * value for value in astuple(self)))

    def widened(self, error: Error) -> Tolerance:
        """At least K times `error`: the baseline's own on the very same inputs."""
        row = K * error.row
        return Tolerance(
            atol=self.atol,
            rtol=self.rtol,
            element=max(self.element, K * error.element),
            row=max(self.row, row),
            bias=max(self.bias, K * error.bias),
            lean=max(self.lean, row) if row > self.row else self.lean,
            all_rows=max(self.all_rows, K * error.all_rows),
        )


@dataclass(frozen=True)
class Error:
    """How far one answer lay off. element: largest |error| over its row's rms; row: largest relative rms
    error of a row; bias: mean of error * sign(y) over mean |y|; max_abs: largest |error|; all_rows: rms of the rows'
    relative rms errors."""

    element: float = 0.0
    row: float = 0.0
    bias: float = 0.0
    max_abs: float = 0.0
    all_rows: float = 0.0

    def worst(self, other: Error) -> Error:
        pairs = zip(self.values(), other.values(), strict=True)
        return Error(*(max(a, b) for a, b in pairs))

    def values(self) -> tuple[float, ...]:
        return astuple(self)


@dataclass(frozen=True)
class Share:
    """The largest part of its limit that an answer's error took: over 1 is a rejection."""

    element: float = 0.0
    row: float = 0.0
    bias: float = 0.0

    def worst(self, other: Share) -> Share:
        return Share(max(self.element, other.element), max(self.row, other.row), max(self.bias, other.bias))


def unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def chance_bias(rows: Tensor, dtype: torch.dtype) -> float:
    """The bias that chance gives: three standard errors of rounding every element of `rows` once."""
    sizes = rounded_sizes(rows, dtype)
    total = float(sizes.sum())
    return 3**0.5 * unit_roundoff(dtype) * float(sizes.square().sum()) ** 0.5 / total if total else 0.0


def rounded_sizes(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """|y|, at least the smallest normal number unless it is 0: what lies below it is rounded as coarsely."""
    return torch.where(rows == 0, 0.0, rows.abs().clamp_min(torch.finfo(dtype).smallest_normal))


def tolerance_for(op: str, dtype: torch.dtype, family: str, output: str) -> Tolerance:
    """The frozen tolerance of one output.

    A family that was not measured (captured) takes the wider of the normal and the heavy-tailed one; a cache deeper
    than was measured takes the deepest that was.
    """
    name = str(dtype).removeprefix("torch.")
    table = published()["published"][name]
    known = measured(op).get(name, {})
    families = [known[family]] if family in known else [known.get(f, {}) for f in ("normal", "heavy_tailed")]
    error = Error()
    for outputs in families:
        error = error.worst(_error_of(outputs, output))
    row_floor = published()["row_floor"][name]
    row = max(K * error.row, row_floor)
    lean = row if error.row > unit_roundoff(dtype) or K * error.bias > row_floor / 4 else 0.0
    together = (K if lean else K_ROUNDED) * error.all_rows
    return Tolerance(
        atol=table["atol"],
        rtol=table["rtol"],
        element=K * error.element,
        row=row,
        bias=max(K * error.bias, row_floor / 4),
        lean=lean,
        all_rows=max(together, row_floor) if error.all_rows else row,
    )


def tolerances_for(op: str, dtype: torch.dtype, family: str, expected: Expectation) -> dict[str, Tolerance]:
    """The frozen tolerance of everything that an answer is compared in, by name."""
    return {e.name: tolerance_for(op, dtype, family, e.name) for e in expected.compared}


def _error_of(outputs: dict[str, dict[str, float]], output: str) -> Error:
    if output in outputs:
        return Error(**outputs[output])
    kind, _, number = output.partition(":")
    deeper = [o for o in outputs if number and o.partition(":")[0] == kind]
    return Error(**outputs[max(deeper, key=lambda o: int(o.partition(":")[2]))]) if deeper else Error()
