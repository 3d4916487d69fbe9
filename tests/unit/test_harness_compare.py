"""Every criterion of an answer has a case that it alone rejects, and honest rounding passes them all."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastkernels.harness.compare import (
    NOISE_FACTOR,
    Expected,
    as_rows,
    check_form,
    check_values,
    measure,
    row_change,
)
from fastkernels.harness.nulls import NullInput, truncated
from fastkernels.harness.tolerance import Tolerance, tolerance_for
from fastkernels.harness.verdict import Rejection, Verdict
from fastkernels.spec import Compare, TensorSpec

STRICT = Tolerance(atol=0.0, rtol=0.0, element=0.05, row=0.01, bias=0.001)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def expected(value: Tensor, dtype: torch.dtype = torch.float32, compare: Compare = Compare.VALUES) -> Expected:
    return Expected("y", value, dtype, compare)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rejected(wanted: Expected, answer: Tensor, tolerance: Tolerance | None = STRICT) -> str:
    with pytest.raises(Rejection) as caught:
        check_values(wanted, answer, tolerance)
    assert caught.value.verdict is Verdict.INCORRECT_NUMERICAL
    return caught.value.message


def test_one_element_is_named_with_its_place_and_values() -> None:
    y = normal(40, 300)
    answer = y.clone()
    answer[31, 7] += 0.06 * y[31].square().mean().sqrt()
    error = measure(as_rows(y), as_rows(answer), torch.float64)
    assert error.row < STRICT.row  # the element criterion alone sees it
    assert error.bias < STRICT.bias
    assert rejected(expected(y, torch.float64), answer).startswith(f"y[31, 7] is {float(answer[31, 7]):.6g}")


def test_one_row_is_rejected_where_every_element_is_within_its_limit() -> None:
    y = normal(40, 300)
    answer = y.clone()
    answer[12] += 0.02 * y[12].square().mean().sqrt() * (1 - 2 * (torch.arange(300) % 2))
    error = measure(as_rows(y), as_rows(answer), torch.float64)
    assert error.element < STRICT.element
    assert error.bias < STRICT.bias
    assert "a row has relative rms error" in rejected(expected(y, torch.float64), answer)


def test_bias_is_rejected_where_every_row_is_within_its_limit() -> None:
    y = normal(40, 300)
    answer = y * 1.002
    error = measure(as_rows(y), as_rows(answer), torch.float64)
    assert error.element < STRICT.element
    assert error.row < STRICT.row
    assert "errors lean one way" in rejected(expected(y, torch.float64), answer)


def test_one_row_may_lean_one_way_within_its_own_limit() -> None:
    """Errors of a row share a cause, as that of a softmax: it takes rows to tell a bias from chance. Where the only
    error is that of rounding each element they share none."""
    y = normal(1, 300)
    check_values(expected(y, torch.float64), y * 1.002, replace(STRICT, lean=STRICT.row))
    assert "errors lean one way" in rejected(expected(y, torch.float64), y * 1.002)
    assert "a row has relative rms error" in rejected(expected(y, torch.float64), y * 1.011)


@pytest.mark.parametrize(("atol", "rtol"), [(0.5, 0.0), (0.0, 0.5)])
def test_absolute_and_relative_bounds_widen_the_element_alone(atol: float, rtol: float) -> None:
    y = 1 + normal(4, 300).abs()
    answer = y.clone()
    answer[0, 0] += 0.2 * y[0].square().mean().sqrt()
    loose = Tolerance(atol=atol, rtol=rtol, element=0.0, row=0.5, bias=0.5)
    check_values(expected(y, torch.float64), answer, loose)
    rejected(expected(y, torch.float64), answer, Tolerance(0.0, 0.0, 0.0, 0.5, 0.5))


def test_small_row_counts_as_much_as_a_large_one() -> None:
    """A row of 1e-4 beside rows of one is held to its own scale."""
    y = normal(8, 64)
    y[3] *= 1e-4
    answer = y.clone()
    answer[3] = 0
    tolerance = Tolerance(atol=0.0, rtol=0.0, element=1e-2, row=1e-2, bias=1.0)
    assert "y[3, " in rejected(expected(y, torch.float64), answer, tolerance)


@pytest.mark.parametrize(
    ("at", "wanted", "given"),
    [
        ("expected NaN", math.nan, 1.0),
        ("unexpected NaN", 1.0, math.nan),
        ("unexpected infinity", 1.0, math.inf),
        ("missing infinity", math.inf, 1.0),
        ("other sign", math.inf, -math.inf),
        ("NaN for infinity", math.inf, math.nan),
    ],
)
def test_pattern_of_nan_and_infinity_must_agree(at: str, wanted: float, given: float) -> None:
    y = normal(3, 20)
    answer = y.clone()
    y[1, 5], answer[1, 5] = wanted, given
    anything_goes = Tolerance(1e9, 1e9, 1e9, 1e9, 1e9)
    assert rejected(expected(y), answer.float(), anything_goes).startswith("y[1, 5]")


def test_nan_and_infinity_in_the_same_places_pass() -> None:
    y = normal(3, 20)
    y[0, 0], y[1, 1], y[2, 2] = math.nan, math.inf, -math.inf
    check_values(expected(y), y.float(), tolerance_for("rms_norm", torch.float32, "normal", "y"))
    check_values(expected(y), y.float(), STRICT)


@pytest.mark.parametrize(
    ("wanted", "given", "is_right"),
    [
        (65504.0, 65504.0, True),
        (65519.0, 65504.0, True),  # rounds down to the largest
        (65600.0, math.inf, True),
        (65600.0, 65504.0, True),  # within one per cent of the end either is right
        (70000.0, math.inf, True),
        (70000.0, 65504.0, False),  # a saturating cast
        (-70000.0, -math.inf, True),
        (-70000.0, math.inf, False),
        (60000.0, math.inf, False),  # an overflow inside
    ],
)
def test_end_of_float16_is_infinite_where_the_value_does_not_fit(wanted: float, given: float, is_right: bool) -> None:
    y = torch.full((2, 16), 1000.0, dtype=torch.float64)
    answer = y.to(torch.float16)
    y[1, 3], answer[1, 3] = wanted, given
    tolerance = Tolerance(atol=0.0, rtol=0.02, element=0.0, row=0.02, bias=0.02)
    if is_right:
        check_values(expected(y, torch.float16), answer, tolerance)
    else:
        rejected(expected(y, torch.float16), answer, tolerance)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(33, 257), (2, 5, 64), (7, 3), (1,), (500,), (0, 8)])
def test_honest_rounding_passes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    for seed in range(60):
        y = normal(*shape, seed=seed) * 10.0 ** (seed % 7 - 3)
        y = y.clamp(-3e4, 3e4)
        tolerance = tolerance_for("linear", dtype, "normal", "y")
        check_values(expected(y, dtype), y.to(dtype), tolerance)


@pytest.mark.parametrize(("dtype", "lower"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float8_e4m3fn)])
def test_one_precision_lower_is_rejected(dtype: torch.dtype, lower: torch.dtype) -> None:
    for seed in range(20):
        y = normal(33, 257, seed=seed)
        rejected(expected(y, dtype), y.to(lower).to(dtype), tolerance_for("linear", dtype, "normal", "y"))


def test_rows_together_are_rejected_where_each_is_within_its_limit() -> None:
    """One bad row is allowed; that all are as bad as the worst is not."""
    y = normal(400, 64)
    noise = normal(400, 64, seed=1)
    tolerance = replace(STRICT, element=1.0, row=0.02, bias=1.0, all_rows=0.002)
    check_values(expected(y, torch.float64), y + 0.001 * noise, tolerance)
    message = rejected(expected(y, torch.float64), y + 0.01 * noise, tolerance)
    assert "the rows together have relative rms error 0.01" in message


def test_ill_conditioned_row_alone_is_granted_its_noise() -> None:
    y = normal(40, 300)
    moved = y.clone()
    moved[7] += 0.03 * normal(300, seed=1)
    noise = row_change(y, moved, torch.float64).where_ill(1e-3)
    assert noise.is_ill.nonzero().flatten().tolist() == [7]
    answer = y.clone()
    answer[7] += 0.1 * normal(300, seed=2)
    rejected(expected(y, torch.float64), answer)
    check_values(expected(y, torch.float64), answer, STRICT, noise)
    answer[8] += 0.1 * normal(300, seed=3)
    with pytest.raises(Rejection, match=r"y\[8, "):
        check_values(expected(y, torch.float64), answer, STRICT, noise)
    answer = y.clone()
    answer[7] += NOISE_FACTOR * 0.05 * normal(300, seed=2)
    with pytest.raises(Rejection, match=r"y\[7, "):
        check_values(expected(y, torch.float64), answer, STRICT, noise)


def test_lean_of_few_rounded_elements_does_not_drown_in_copies() -> None:
    """Nine elements of ten are copied: the tenth still may not be cut off."""
    y = normal(257, 200)
    y[:, 20:] = y[:, 20:].bfloat16().double()
    rounded = y.bfloat16()
    cut = (y.float().view(torch.int32) & ~0xFFFF).view(torch.float32).bfloat16()
    tolerance = tolerance_for("rms_norm", torch.bfloat16, "normal", "y")
    check_values(expected(y, torch.bfloat16), rounded, tolerance)
    assert "errors lean one way" in rejected(expected(y, torch.bfloat16), cut, tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_truncating_silu_and_mul_is_rejected_at_every_seed(dtype: torch.dtype) -> None:
    for seed in range(20):
        gate, up = normal(257, 64, seed=seed).to(dtype).double(), normal(257, 64, seed=seed + 100).to(dtype).double()
        y = torch.nn.functional.silu(gate) * up
        tolerance = tolerance_for("silu_and_mul", dtype, "normal", "y")
        check_values(expected(y, dtype), y.to(dtype), tolerance)
        cut = truncated(NullInput(y.to(dtype), y, {}, None, y))
        assert cut is not None
        assert "errors lean one way" in rejected(expected(y, dtype), cut, tolerance)


def test_bias_tells_truncation_from_rounding() -> None:
    y = normal(64, 512)
    truncated = (y.float().view(torch.int32) & ~0xFFFF).view(torch.float32)
    rounding, truncation = (measure(as_rows(y), as_rows(x.double()), torch.bfloat16) for x in (y.bfloat16(), truncated))
    assert truncation.bias > 20 * rounding.bias
    assert truncation.row < 2.5 * rounding.row


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_exact_allows_no_element_to_differ(dtype: torch.dtype) -> None:
    value = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    wanted = expected(value.double() if dtype.is_floating_point else value, dtype, Compare.EXACT)
    check_values(wanted, value, None)
    wrong = value.clone()
    wrong[1, 0] = (
        0
        if dtype is torch.bool
        else torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)).to(dtype) + (0 if dtype.is_floating_point else 1)
    )
    assert "y[1, 0]" in rejected(wanted, wrong, None)


def test_exact_takes_nan_for_nan_alone() -> None:
    value = torch.tensor([math.nan, 1.0])
    wanted = expected(value.double(), torch.float32, Compare.EXACT)
    check_values(wanted, value, None)
    rejected(wanted, torch.tensor([0.0, 1.0]), None)
    rejected(wanted, torch.tensor([math.nan, math.nan]), None)


def test_integers_compared_as_values_must_be_exact() -> None:
    rejected(expected(torch.tensor([4, 5]), torch.int64), torch.tensor([4, 6]), None)


def _index(value: list[int], of: Tensor) -> Expected:
    return Expected("ids", torch.tensor(value), torch.int64, Compare.VALUE_AT_INDEX, of)


def test_index_may_point_at_a_tie_and_nowhere_else() -> None:
    of = torch.tensor([[1.0, 5.0, 5.0, 2.0], [9.0, 1.0, 9.0, 9.0]])
    for answer in ([1, 0], [2, 0], [2, 3]):
        check_values(_index([1, 0], of), torch.tensor(answer), None)
    message = rejected(_index([1, 0], of), torch.tensor([3, 0]), None)
    assert message == "ids[0] points at 2, the definition's at 5."


@pytest.mark.parametrize("bad", [-1, 4, 1 << 40])
def test_index_out_of_range_is_a_verdict(bad: int) -> None:
    of = torch.tensor([[1.0, 5.0, 5.0, 2.0]])
    assert "outside [0, 4)" in rejected(_index([1], of), torch.tensor([bad]), None)


ROWS, IMAGES = TensorSpec(("rows", "columns")), TensorSpec(("batch", "channels", "height", "out_width"))


def _form(answer: Tensor, spec: TensorSpec = ROWS, shape: tuple[int, ...] = (3, 4)) -> None:
    y = expected(torch.zeros(shape, dtype=torch.float64))
    dtype = str(answer.dtype).removeprefix("torch.")
    check_form(y, answer.shape, answer.stride(), dtype, spec)


@pytest.mark.parametrize(
    ("answer", "verdict", "text"),
    [
        (torch.zeros(4, 3), Verdict.INCORRECT_SHAPE, r"y has shape [4, 3], expected [3, 4]."),
        (torch.zeros(12), Verdict.INCORRECT_SHAPE, r"y has shape [12], expected [3, 4]."),
        (torch.zeros(1, 3, 4), Verdict.INCORRECT_SHAPE, r"y has shape [1, 3, 4], expected [3, 4]."),
        (torch.zeros(3, 4, dtype=torch.float64), Verdict.INCORRECT_DTYPE, r"y has dtype float64, expected float32."),
        (torch.zeros(4, 3).T, Verdict.INCORRECT_SHAPE, r"y has strides [1, 3]; the contract returns dense tensors."),
        (torch.zeros(1, 4).expand(3, 4), Verdict.INCORRECT_SHAPE, r"y has strides [0, 1]"),
    ],
)
def test_form_names_what_is_there_and_what_was_expected(answer: Tensor, verdict: Verdict, text: str) -> None:
    with pytest.raises(Rejection) as caught:
        _form(answer)
    assert caught.value.verdict is verdict
    assert caught.value.message.startswith(text)


def test_form_ignores_strides_of_axes_of_one_element() -> None:
    y = expected(torch.zeros(1, 4, dtype=torch.float64))
    check_form(y, (1, 4), (77, 1), "float32", ROWS)
    _form(torch.zeros(4, 3).T, ROWS.strided())


def test_an_image_may_lie_channels_last_and_nothing_else_may() -> None:
    shape = (2, 3, 4, 5)
    _form(torch.zeros(shape), IMAGES, shape)
    last = torch.zeros(shape).to(memory_format=torch.channels_last)
    _form(last, IMAGES, shape)
    heads = TensorSpec(("batch", "num_tokens", "num_heads", "head_size"))
    for answer, spec in ((last, heads), (torch.zeros(2, 4, 3, 5).transpose(1, 2), IMAGES)):
        with pytest.raises(Rejection, match="has strides"):
            _form(answer, spec, shape)


def test_empty_answer_passes() -> None:
    check_values(expected(torch.zeros(0, 16, dtype=torch.float64)), torch.zeros(0, 16), STRICT)
