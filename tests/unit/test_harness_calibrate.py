"""What is measured of a production path, and what that costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastkernels.harness import calibrate, expect
from fastkernels.harness.calibrate import Measured, measure_op
from fastkernels.harness.tolerance import Error
from fastkernels.registry import ops

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def rows_of(found: Measured) -> dict[tuple[str, str, str], Error]:
    return {(d, f, o): error for d, families in found.items() for f, os in families.items() for o, error in os.items()}


def test_ill_conditioned_rows_are_looked_for_only_where_an_error_is_not_small_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_looked, noise = [], expect._noise
    monkeypatch.setattr(expect, "NUM_NOISE_DRAWS", 2)
    monkeypatch.setattr(expect, "_noise", lambda *given: (num_looked.append(1), noise(*given))[1])
    entry = ops()["flash_attn_prefill"]
    found = rows_of(measure_op(entry, CPU, 2, seed=1))
    num_in_full = len(num_looked)
    num_looked.clear()
    limit = 1e-5
    quick = rows_of(measure_op(entry, CPU, 2, seed=1, is_enough=lambda *given: given[-1].row <= limit))
    assert 0 < len(num_looked) < num_in_full
    assert quick.keys() == found.keys()
    assert any(found[key].row > limit for key in found)
    assert all(max(quick[key].row, limit) == max(found[key].row, limit) for key in found)
    num_looked.clear()
    measure_op(entry, CPU, 2, seed=1, is_enough=lambda *_: True)
    assert not num_looked


def test_definition_is_on_the_cpu_whatever_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a production path that only claims to be on a GPU."""
    build, answers, asked = calibrate.build_reference, calibrate.answers_of, []

    def build_here(*given: Any) -> torch.nn.Module:
        asked.append(given[-1])
        return build(*given[:-1], CPU)

    monkeypatch.setattr(calibrate, "build_reference", build_here)
    monkeypatch.setattr(calibrate, "answers_of", lambda op, case, expected, _: answers(op, case, expected, CPU))
    found = measure_op(ops()["rms_norm"], GPU, 2, seed=1)
    assert set(asked) == {GPU}
    monkeypatch.undo()
    assert found == measure_op(ops()["rms_norm"], CPU, 2, seed=1)
