"""Knees of known curves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastkernels.calibration.curve import COLLAPSED, falling_envelope, find_knee


def test_the_knee_of_two_lines_is_where_they_meet() -> None:
    x = np.linspace(0.1, 1, 10)
    concave = find_knee(x.tolist(), np.where(x <= 0.6, 1 - x / 6, 0.9 - (x - 0.6) * 2.25).tolist())
    assert concave is not None
    assert concave.discrepancy == pytest.approx(0.6)
    convex = find_knee(x.tolist(), np.where(x <= 0.3, 1 - 3 * x, 0.1 - (x - 0.3) / 7).tolist())
    assert convex is not None
    assert (convex.discrepancy, convex.retained) == (pytest.approx(0.3), pytest.approx(0.1))
    assert convex.distance == pytest.approx(1 - 3 / 7 - (0.1 - 0.3 / 7) / (1 - 0.3 / 7))  # it ends at (0.7, 0.043)


def test_the_knee_of_an_exponential_is_where_its_slope_is_that_of_the_chord() -> None:
    x = np.linspace(0.001, 1, 1000)
    fall = 5.0
    found = find_knee(x.tolist(), ((np.exp(-fall * x) - math.exp(-fall)) / (1 - math.exp(-fall))).tolist())
    assert found is not None
    cut = 1 - math.exp(-fall) - 0.05 * (1 - math.exp(-fall))  # the curve ends where 5 % is left
    end = -math.log(1 - cut) / fall
    assert found.discrepancy == pytest.approx(math.log(fall * end / cut) / fall, abs=2e-3)


def test_a_straight_line_and_a_curve_that_does_not_collapse_have_no_knee() -> None:
    x = np.linspace(0.1, 1, 10)
    assert find_knee(x.tolist(), (1 - x).tolist()) is None
    assert find_knee(x.tolist(), (1 - (1 - COLLAPSED) * 0.9 * x**3).tolist()) is None
    assert find_knee([0.0, 0.0], [1.0, 1.0]) is None


def test_the_envelope_falls_and_holds_points_alone() -> None:
    x, y = falling_envelope([0.5, 0.1, 0.3, 0.4, 0.9, 1.4], [0.6, 0.9, 0.2, 1.02, 0.01, 0.0])
    assert x.tolist() == [0.0, 0.4, 0.5, 0.9]  # 0.3 was worth less than 0.5 is; beyond 0.9 nothing is left
    assert y.tolist() == [1.0, 1.0, 0.6, 0.01]
