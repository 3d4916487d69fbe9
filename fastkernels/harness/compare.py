"""Whether an answer is the definition's: shape, dtype, NaN pattern, every element, every row, the bias.

Pure functions of tensors that the judge owns. An answer is bytes that the judge has copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fastkernels.harness.tolerance import Error, K, Share, Tolerance, chance_bias, rounded_sizes
from fastkernels.harness.verdict import Rejection, Verdict
from fastkernels.spec import Compare, TensorSpec

_CHANNELS_LAST = (0, 2, 3, 1)
_TINY = 1e-30
LEAST_ROW = 16

ILL_CONDITIONED = 16.0
"""A row that one roundoff in what the definition reads moves by more than this many roundoffs."""

NOISE_FACTOR = 2 * K
"""Multiple of its own noise that an ill-conditioned row's error may be: the noise rounds each operand once, a sum is
rounded at every term. Measured (benchmarks/judge_comparisons.py, fp32 attention): right answers reach 5.4."""


@dataclass(frozen=True)
class Expected:
    """One expected tensor. value: float64 for floats, the values themselves otherwise; dtype: of the
    answer; of: the values an index points at."""

    name: str
    value: Tensor
    dtype: torch.dtype
    compare: Compare
    of: Tensor | None = None


@dataclass(frozen=True)
class RowNoise:
    """How far each row moves when what the definition reads moves by one roundoff, over the row's scale.

    row: rms; element: largest. Both are 0 for a row that is well-conditioned.
    """

    row: Tensor
    element: Tensor

    @classmethod
    def none(cls, num_rows: int, device: torch.device) -> RowNoise:
        nothing = torch.zeros(num_rows, dtype=torch.float64, device=device)
        return cls(nothing, nothing)

    @property
    def is_ill(self) -> Tensor:
        return self.row > 0

    def worst(self, other: RowNoise) -> RowNoise:
        return RowNoise(torch.maximum(self.row, other.row), torch.maximum(self.element, other.element))

    def where_ill(self, roundoff: float) -> RowNoise:
        """Only of rows that move by more than ILL_CONDITIONED roundoffs."""
        return self.only(self.row > ILL_CONDITIONED * roundoff)

    def only(self, chosen: Tensor) -> RowNoise:
        return RowNoise(torch.where(chosen, self.row, 0.0), torch.where(chosen, self.element, 0.0))

    def times(self, factor: float) -> RowNoise:
        return RowNoise(self.row * factor, self.element * factor)

    def error_of(self, chosen: Tensor) -> Error:
        """Of the chosen rows, as an error without a bias."""
        row, element = self.row[chosen], self.element[chosen]
        if not len(row):
            return Error()
        return Error(float(element.max()), float(row.max()), all_rows=float(row.square().mean().sqrt()))


@dataclass(frozen=True)
class Finding:
    """What a comparison that passed found. rows: how far each row lay off, where rows were compared."""

    error: Error = field(default_factory=Error)
    share: Share = field(default_factory=Share)
    rows: RowNoise | None = field(default=None, compare=False)

    def worst(self, other: Finding) -> Finding:
        return Finding(self.error.worst(other.error), self.share.worst(other.share))


def check_form(expected: Expected, shape: Sequence[int], stride: Sequence[int], dtype: str, spec: TensorSpec) -> None:
    """Errors: Rejection INCORRECT_SHAPE or INCORRECT_DTYPE."""
    wanted = list(expected.value.shape)
    if list(shape) != wanted:
        raise Rejection(Verdict.INCORRECT_SHAPE, f"{expected.name} has shape {list(shape)}, expected {wanted}.")
    wanted_dtype = str(expected.dtype).removeprefix("torch.")
    if dtype != wanted_dtype:
        raise Rejection(Verdict.INCORRECT_DTYPE, f"{expected.name} has dtype {dtype}, expected {wanted_dtype}.")
    orders = [range(len(shape)), *([_CHANNELS_LAST] if spec.is_image and len(shape) == 4 else [])]
    if not spec.may_be_strided and not any(_is_dense([(shape[i], stride[i]) for i in order]) for order in orders):
        raise Rejection(
            Verdict.INCORRECT_SHAPE, f"{expected.name} has strides {list(stride)}; the contract returns dense tensors."
        )


def _is_dense(axes: Sequence[tuple[int, int]]) -> bool:
    """axes: size and stride of each, the outermost first."""
    step = 1
    for size, given in reversed(axes):
        if size > 1 and given != step:
            return False
        step *= size
    return True


def check_values(
    expected: Expected, answer: Tensor, tolerance: Tolerance | None, noise: RowNoise | None = None
) -> Finding:
    """How far `answer` (of the expected shape and dtype) lies off.

    noise: of ill-conditioned rows; these are held to a multiple of it where that is more, and count for no bias.
    Errors: Rejection INCORRECT_NUMERICAL, with the worst element and where it is.
    """
    if expected.compare is Compare.EXACT:
        return _check_exact(expected, answer)
    if expected.compare is Compare.VALUE_AT_INDEX:
        return _check_index(expected, answer)
    if not answer.dtype.is_floating_point:
        return _check_exact(expected, answer)
    assert tolerance is not None
    return _check_floats(expected, answer, tolerance, noise)


def _check_exact(expected: Expected, answer: Tensor) -> Finding:
    wanted = expected.value.to(answer.dtype)
    same = (
        (wanted == answer) | (torch.isnan(wanted) & torch.isnan(answer))
        if wanted.is_floating_point()
        else wanted == answer
    )
    if not bool(same.all()):
        index = _first(~same)
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL,
            f"{expected.name}{index} is {_at(answer, index)}, must be exactly {_at(wanted, index)} "
            f"({int((~same).sum())} of {same.numel()} elements differ).",
        )
    return Finding()


def _check_index(expected: Expected, answer: Tensor) -> Finding:
    assert expected.of is not None
    size = expected.of.shape[-1]
    outside = (answer < 0) | (answer >= size)
    if bool(outside.any()):
        index = _first(outside)
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL, f"{expected.name}{index} is {_at(answer, index)}, outside [0, {size})."
        )
    at_answer, at_expected = (_values_at(expected.of, index) for index in (answer, expected.value))
    if answer.dim() == expected.of.dim():  # several of a row
        ordered = answer.sort(-1).values
        if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
            raise Rejection(Verdict.INCORRECT_NUMERICAL, f"{expected.name} names one place twice in a row.")
    worse = at_answer != at_expected
    if bool(worse.any()):
        index = _first(worse)
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL,
            f"{expected.name}{index} points at {_at(at_answer, index):.6g}, "
            f"the definition's at {_at(at_expected, index):.6g}.",
        )
    return Finding()


def _values_at(values: Tensor, index: Tensor) -> Tensor:
    """What an index of each row, or several of each, point at."""
    if index.dim() == values.dim():
        return torch.gather(values, -1, index.long())
    return torch.gather(values, -1, index.long().unsqueeze(-1)).squeeze(-1)


def _check_floats(expected: Expected, answer: Tensor, tolerance: Tolerance, noise: RowNoise | None) -> Finding:
    wanted, given = expected.value, answer.to(torch.float64)
    _check_pattern(expected, wanted, given, answer.dtype)
    if wanted.numel() == 0:
        return Finding()
    rows, answers = finite_rows(wanted, given)
    noise = noise or RowNoise.none(len(rows), rows.device)
    scale, difference = row_scale(rows, expected.dtype), answers - rows
    element = torch.clamp(NOISE_FACTOR * noise.element, min=tolerance.element)
    limit = torch.maximum(tolerance.atol + tolerance.rtol * rows.abs(), (element * scale)[:, None])
    over = difference.abs() / limit.clamp_min(_TINY)
    if bool((difference.abs() > limit).any()):
        flat = int(over.flatten().argmax())
        place = [int(i) for i in np.unravel_index(flat, tuple(expected.value.shape))]  # torch's imports sympy
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL,
            f"{expected.name}{place} is {float(answers.flatten()[flat]):.6g}, "
            f"expected {float(rows.flatten()[flat]):.6g} within {float(limit.flatten()[flat]):.3g} "
            f"({int((over > 1).sum())} of {over.numel()} elements are off).",
        )
    share_row = _check_rows(expected, rows, difference, tolerance, noise)
    share_bias = _check_bias(expected, rows, answers, tolerance, ~noise.is_ill)
    share = Share(float(over.max()), share_row, share_bias)
    rows_off = row_change(expected.value, given, expected.dtype) if rows.shape[-1] >= LEAST_ROW else None
    return Finding(measure(rows, answers, expected.dtype), share, rows_off)


def _check_rows(expected: Expected, rows: Tensor, difference: Tensor, tolerance: Tolerance, noise: RowNoise) -> float:
    """The largest share of its limit that a row's relative rms error takes."""
    if rows.shape[-1] < LEAST_ROW:
        return 0.0
    errors = difference.square().mean(-1).sqrt() / row_scale(rows, expected.dtype)
    limits = torch.clamp(NOISE_FACTOR * noise.row, min=tolerance.row)
    worst = int((errors / limits.clamp_min(_TINY)).argmax())
    error, limit = float(errors[worst]), float(limits[worst])
    if error > limit:
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL,
            f"{expected.name}: a row has relative rms error {error:.3g}, over {limit:.3g}.",
        )
    counted = errors[~noise.is_ill]
    if not len(counted):
        return error / max(limit, _TINY)
    together = float(counted.square().mean().sqrt())
    limit_together = (tolerance.all_rows**2 + tolerance.row**2 / len(counted)) ** 0.5
    if together > limit_together:
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL,
            f"{expected.name}: the rows together have relative rms error {together:.3g}, over {limit_together:.3g}.",
        )
    return max(error / max(limit, _TINY), together / max(limit_together, _TINY))


def _check_bias(expected: Expected, rows: Tensor, answers: Tensor, tolerance: Tolerance, counts: Tensor) -> float:
    """The share of the limit that errors which lean one way take, over the rows that count: of all elements, and of
    those that had to be rounded (where most are copied, the others' lean would drown)."""
    if not bool(counts.any()) or rows.shape[-1] < LEAST_ROW:
        return 0.0
    y, difference = rows[counts], answers[counts] - rows[counts]
    is_rounded = y != y.to(expected.dtype).double()
    shares = [0.0]
    for chosen in (torch.ones_like(is_rounded), is_rounded):
        bias = bias_of(y * chosen, difference * chosen, expected.dtype)
        # Errors of one row may share a cause (its softmax): few rows lean one way by chance.
        rounding = tolerance.bias + chance_bias(y * chosen, expected.dtype)
        limit = max(rounding, tolerance.lean / max(1, int(chosen.any(-1).sum())) ** 0.5)
        if bias > limit:
            raise Rejection(
                Verdict.INCORRECT_NUMERICAL,
                f"{expected.name}: errors lean one way by {bias:.3g} of the mean value, over {limit:.3g}.",
            )
        shares.append(bias / max(limit, _TINY))
    return max(shares)


def bias_of(rows: Tensor, difference: Tensor, dtype: torch.dtype) -> float:
    total = float(rounded_sizes(rows, dtype).sum())
    return abs(float((difference * rows.sign()).sum())) / max(total, _TINY)


def finite_rows(wanted: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64 [rows, elements], zero where either is not finite."""
    finite = torch.isfinite(wanted) & torch.isfinite(given)
    return as_rows(torch.where(finite, wanted, 0.0)), as_rows(torch.where(finite, given.double(), 0.0))


def row_scale(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Each row's rms; at least a millionth of that of all, and the dtype's smallest normal number: what lies below it
    has fewer digits."""
    least = 1e-6 * float(rows.square().mean().sqrt()) + max(_TINY, torch.finfo(dtype).smallest_normal)
    return rows.square().mean(-1).sqrt().clamp_min(least)


def row_change(wanted: Tensor, moved: Tensor, dtype: torch.dtype) -> RowNoise:
    if wanted.numel() == 0:
        return RowNoise.none(0, wanted.device)
    rows, answers = finite_rows(wanted, moved)
    difference, scale = (answers - rows).abs(), row_scale(rows, dtype)
    return RowNoise(difference.square().mean(-1).sqrt() / scale, difference.amax(-1) / scale)


def measure(rows: Tensor, answers: Tensor, dtype: torch.dtype) -> Error:
    """Error of `answers`, given in `dtype`, against `rows`, both float64 and [rows, elements].

    Relative errors are 0 when a row is too short for them: one sum that cancels is not a wrong one.
    """
    difference = answers - rows
    if not rows.numel():
        return Error()
    if rows.shape[-1] < LEAST_ROW:
        return Error(max_abs=float(difference.abs().max()))
    scale = row_scale(rows, dtype)
    row = difference.square().mean(-1).sqrt() / scale
    element = difference.abs().amax(-1) / scale
    together = float(row.square().mean().sqrt())
    bias = bias_of(rows, difference, dtype)
    return Error(float(element.max()), float(row.max()), bias, float(difference.abs().max()), together)


def _check_pattern(expected: Expected, wanted: Tensor, given: Tensor, dtype: torch.dtype) -> None:
    """NaN where NaN is expected; infinite where the value does not fit the dtype, give or take one per cent."""
    limit = torch.finfo(dtype).max
    if bool((torch.isnan(wanted) != torch.isnan(given)).any()):
        index = _first(torch.isnan(wanted) != torch.isnan(given))
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL,
            f"{expected.name}{index} is {_at(given, index)}, expected {_at(wanted, index)}.",
        )
    must = wanted.abs() > limit * 1.01
    must_not = wanted.abs() < limit * 0.99
    infinite = torch.isinf(given)
    wrong = (must & ~infinite) | (must_not & infinite) | (must & infinite & (given.sign() != wanted.sign()))
    if bool(wrong.any()):
        index = _first(wrong)
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL,
            f"{expected.name}{index} is {_at(given, index)}, expected {_at(wanted, index)}.",
        )


def as_rows(x: Tensor) -> Tensor:
    """[rows, elements]: the last axis, or everything when that is too short for a relative error to mean much."""
    return x.reshape(-1, x.shape[-1]) if x.ndim > 1 and x.shape[-1] >= LEAST_ROW else x.reshape(1, -1)


def _first(mask: Tensor) -> list[int]:
    return mask.nonzero()[0].tolist() if mask.ndim else []


def _at(x: Tensor, index: Sequence[int]) -> float:
    return float(x[tuple(index)])
