"""Whether an answer is the definition's: shape, dtype, NaN pattern, every element, every row, the bias.

Pure functions of tensors that the judge owns. An answer is bytes that the judge has copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastkernels.harness.tolerance import Error, Tolerance
from fastkernels.harness.verdict import Rejection, Verdict
from fastkernels.spec import Compare

_TINY = 1e-30
_LEAST_ROW = 16


@dataclass(frozen=True)
class Expected:
    """One expected tensor. value: float64 for floats, the values themselves otherwise; dtype: of the
    answer; of: the values an index points at."""

    name: str
    value: Tensor
    dtype: torch.dtype
    compare: Compare
    of: Tensor | None = None


def check_form(
    expected: Expected, shape: Sequence[int], stride: Sequence[int], dtype: str, *, is_strided_ok: bool
) -> None:
    """Errors: Rejection INCORRECT_SHAPE or INCORRECT_DTYPE."""
    wanted = list(expected.value.shape)
    if list(shape) != wanted:
        raise Rejection(Verdict.INCORRECT_SHAPE, f"{expected.name} has shape {list(shape)}, expected {wanted}.")
    wanted_dtype = str(expected.dtype).removeprefix("torch.")
    if dtype != wanted_dtype:
        raise Rejection(Verdict.INCORRECT_DTYPE, f"{expected.name} has dtype {dtype}, expected {wanted_dtype}.")
    if not is_strided_ok and not _is_dense(shape, stride):
        raise Rejection(
            Verdict.INCORRECT_SHAPE, f"{expected.name} has strides {list(stride)}; the contract returns dense tensors."
        )


def _is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    step = 1
    for size, given in zip(reversed(shape), reversed(stride), strict=True):
        if size > 1 and given != step:
            return False
        step *= size
    return True


def check_values(expected: Expected, answer: Tensor, tolerance: Tolerance | None) -> Error:
    """How far `answer` (of the expected shape and dtype) lies off.

    Errors: Rejection INCORRECT_NUMERICAL, with the worst element and where it is.
    """
    if expected.compare is Compare.EXACT:
        return _check_exact(expected, answer)
    if expected.compare is Compare.VALUE_AT_INDEX:
        return _check_index(expected, answer)
    if not answer.dtype.is_floating_point:
        return _check_exact(expected, answer)
    assert tolerance is not None
    return _check_floats(expected, answer, tolerance)


def _check_exact(expected: Expected, answer: Tensor) -> Error:
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
    return Error()


def _check_index(expected: Expected, answer: Tensor) -> Error:
    assert expected.of is not None
    size = expected.of.shape[-1]
    outside = (answer < 0) | (answer >= size)
    if bool(outside.any()):
        index = _first(outside)
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL, f"{expected.name}{index} is {_at(answer, index)}, outside [0, {size})."
        )
    at_answer = torch.gather(expected.of, -1, answer.long().unsqueeze(-1)).squeeze(-1)
    at_expected = torch.gather(expected.of, -1, expected.value.long().unsqueeze(-1)).squeeze(-1)
    worse = at_answer != at_expected
    if bool(worse.any()):
        index = _first(worse)
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL,
            f"{expected.name}{index} points at {_at(at_answer, index):.6g}, "
            f"the definition's at {_at(at_expected, index):.6g}.",
        )
    return Error()


def _check_floats(expected: Expected, answer: Tensor, tolerance: Tolerance) -> Error:
    wanted, given = expected.value, answer.to(torch.float64)
    _check_pattern(expected, wanted, given, answer.dtype)
    finite = torch.isfinite(wanted) & torch.isfinite(given)
    wanted = torch.where(finite, wanted, 0.0)
    given = torch.where(finite, given, 0.0)
    if wanted.numel() == 0:
        return Error()
    rows, answers = as_rows(wanted), as_rows(given)
    difference = answers - rows
    row_rms = rows.square().mean(-1).sqrt()
    scale = row_rms.clamp_min(1e-6 * float(rows.square().mean().sqrt()) + _TINY)
    error = measure(rows, answers)
    limit = torch.maximum(tolerance.atol + tolerance.rtol * rows.abs(), tolerance.element * scale[:, None])
    over = difference.abs() > limit
    if bool(over.any()):
        flat = int((difference.abs() / limit).flatten().argmax())
        index = torch.unravel_index(torch.tensor(flat), expected.value.shape) if expected.value.ndim else ()
        place = [int(i) for i in index]
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL,
            f"{expected.name}{place} is {float(answers.flatten()[flat]):.6g}, "
            f"expected {float(rows.flatten()[flat]):.6g} within {float(limit.flatten()[flat]):.3g} "
            f"({int(over.sum())} of {over.numel()} elements are off).",
        )
    if error.row > tolerance.row:
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL,
            f"{expected.name}: a row has relative rms error {error.row:.3g}, over {tolerance.row:.3g}.",
        )
    # Errors of one row may share a cause (its softmax), and few rows lean one way by chance.
    bias = max(tolerance.bias, tolerance.row / len(rows) ** 0.5)
    if error.bias > bias:
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL,
            f"{expected.name}: errors lean one way by {error.bias:.3g} of the mean value, over {bias:.3g}.",
        )
    return error


def measure(rows: Tensor, answers: Tensor) -> Error:
    """Error of `answers` against `rows`, both float64 and [rows, elements].

    Relative errors are 0 when a row is too short for them: one sum that cancels is not a wrong one.
    """
    difference = answers - rows
    if rows.shape[-1] < _LEAST_ROW:
        return Error(max_abs=float(difference.abs().max()))
    scale = rows.square().mean(-1).sqrt().clamp_min(1e-6 * float(rows.square().mean().sqrt()) + _TINY)
    row = difference.square().mean(-1).sqrt() / scale
    element = difference.abs().amax(-1) / scale
    mean = rows.abs().mean().clamp_min(_TINY)
    bias = (difference * rows.sign()).mean().abs() / mean
    return Error(float(element.max()), float(row.max()), float(bias), float(difference.abs().max()))


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
    return x.reshape(-1, x.shape[-1]) if x.ndim > 1 and x.shape[-1] >= _LEAST_ROW else x.reshape(1, -1)


def _first(mask: Tensor) -> list[int]:
    return mask.nonzero()[0].tolist() if mask.ndim else []


def _at(x: Tensor, index: Sequence[int]) -> float:
    return float(x[tuple(index)])
