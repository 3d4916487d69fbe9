"""Thresholds from samples, and where the samples come from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fastkernels.calibration.cliff import Chance, Curve
from fastkernels.calibration.curve import find_knee
from fastkernels.calibration.noise import NoiseSample
from fastkernels.calibration.reorder import OtherOrder
from fastkernels.calibration.subject import Subject, copy_weights
from fastkernels.calibration.thresholds import BY_FLOOR, BY_GOOD, BY_HALF, find_bad, find_good, find_thresholds
from fastkernels.errors import UnsupportedError
from fastkernels.scoring.items import Family


def test_sums_in_another_order_are_the_same_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(n, generator=generator) for n in ((3, 5, 33), (7, 33), (7,)))
    picture, kernel = (torch.randn(n, generator=generator) for n in ((2, 6, 9, 9), (4, 6, 3, 3)))
    calls: list[Callable[[], torch.Tensor]] = [
        lambda: torch.nn.functional.linear(x, w, b),
        lambda: x @ w.T,
        lambda: torch.bmm(x, x.mT),
        lambda: torch.einsum("bsk,nk->bsn", x, w),
        lambda: torch.nn.functional.conv2d(picture, kernel, padding=1, stride=2),
    ]
    for call in calls:
        expected = call()
        with OtherOrder():
            found = call()
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for call in calls[:3]:
        with OtherOrder():
            found = call()
        assert not torch.equal(found, call())
    half = x.bfloat16(), w.bfloat16()
    with OtherOrder():
        assert torch.nn.functional.linear(*half).dtype == torch.bfloat16


def test_a_subject_is_sent_the_same_in_every_dtype_and_its_weights_are_copied() -> None:
    half, exact = Subject("tiny-whisper", "bfloat16", 2), Subject("tiny-whisper", "float32", 2)
    for first, second in zip(half.requests, exact.requests, strict=True):
        assert np.array_equal(first["prompt"]["prompt_token_ids"], second["prompt"]["prompt_token_ids"])
    copy_weights(half.model, exact.model)
    pairs = zip(half.model.parameters(), exact.model.parameters(), strict=True)
    assert all(torch.equal(a.float(), b) for a, b in pairs)


def test_a_language_model_agrees_with_itself(mixtral: Subject) -> None:
    assert mixtral.compare(mixtral.answers()).values == (0.0, 0.0)
    wrong = [{"token_ids": (answer["token_ids"] + 1) % 512} for answer in mixtral.own]
    assert min(mixtral.compare(wrong).values) > 0.9


def sample(model: str, dtype: str, *values: float, floor: float = 0.01, variant: str = "again") -> NoiseSample:
    return NoiseSample(model, dtype, variant, values, {}, floor)


def test_good_of_an_exact_pair_is_the_floor() -> None:
    good = find_good([sample("a", "float32", 0.0, 0.0), sample("b", "float32", 0.0, floor=0.02)], bad=0.5)
    assert (good.value, good.decided_by, good.left_out) == (0.02, BY_FLOOR, {})


def test_good_is_twice_the_largest_request_of_any_variant() -> None:
    samples = [
        sample("a", "float16", 0.0, 0.03, variant="alone"),
        sample("b", "float16", 0.04, 0.01, variant="threads"),
    ]
    good = find_good(samples, bad=0.5)
    assert (good.value, good.largest, good.decided_by) == (0.08, 0.04, "b, threads")


def test_a_model_whose_noise_reaches_the_unusable_is_left_out_and_named() -> None:
    samples = [sample("a", "bfloat16", 0.3), sample("b", "bfloat16", 0.04)]
    good = find_good(samples, bad=0.5)
    assert (good.value, good.left_out) == (0.08, {"a": 0.3})
    assert find_good(samples[:1], bad=0.5).value == 0.25
    assert find_good(samples[:1], bad=0.5).decided_by == BY_HALF
    assert find_good([sample("a", "bfloat16", 0.1, floor=0.4)], bad=0.5).value == 0.25


def curve(model: str, *points: tuple[float, float]) -> Curve:
    knee = find_knee([x for x, _ in points], [y for _, y in points])
    return Curve(model, "noise", "quality", 1.0, 0.0, (), 0, knee)


SHARP = curve("a", (0.2, 0.95), (0.4, 0.9), (0.5, 0.0))
SOFT = curve("b", (0.1, 0.2), (0.5, 0.1), (1.0, 0.0))
LINE = curve("c", (0.01, 0.5), (0.02, 0.0))


def test_bad_is_the_strictest_knee_and_gives_way_to_float32() -> None:
    chances = [Chance("a", 0.9, 0.95)]
    bad = find_bad(Family.IMAGE, [SHARP, SOFT, LINE], chances, least=0.02)
    assert (bad.value, bad.decided_by, bad.random) == (0.1, "b, noise", 0.95)
    bad = find_bad(Family.IMAGE, [SHARP, SOFT, LINE], chances, least=0.3)
    assert (bad.value, bad.decided_by) == (0.3, BY_GOOD)
    with pytest.raises(UnsupportedError, match="No damage of family image has a knee"):
        find_bad(Family.IMAGE, [LINE], chances, least=0.02)
    with pytest.raises(
        UnsupportedError, match=r"at random of family image lie at 0\.05, and unusable ones begin at 0\.1"
    ):
        find_bad(Family.IMAGE, [SOFT], [Chance("b", 0.05, 0.05)], least=0.02)


def test_a_factor_of_two_lies_between_good_and_bad_in_every_dtype() -> None:
    samples = [sample("a", "float32", 0.06), sample("a", "bfloat16", 0.2), sample("a", "float16", 0.05)]
    found = find_thresholds(Family.IMAGE, samples, [SOFT], [Chance("b", 0.9, 0.9)])
    assert found.bad.value == pytest.approx(0.24)  # 2 x 2 x 0.06, over the knee at 0.1
    assert {d: g.value for d, g in found.good.items()} == {"float32": 0.12, "bfloat16": 0.12, "float16": 0.1}
