"""Which kernels a call launched, by the candidate's own word: told when it can be, and never more than a claim."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from judging import Bench, bench, rms_norm
from torch import nn

from fastkernels.harness.judge import JudgeConfig
from fastkernels.harness.launched import MOST_CHARACTERS, MOST_NAMES, names_of_call, read_names
from fastkernels.harness.verdict import Verdict

__all__ = ["bench"]

CONFIG = JudgeConfig(num_shapes=1, is_timed=False, dtypes=(torch.float32,))
RIGHT = "return self.right(x, residual)"
LYING = """
import fastkernels.harness.worker as worker
worker.names_of_call = lambda *given: {said}
"""


class Two(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(torch.relu(x), x) + 1


def test_operators_are_told_once_without_those_that_they_call() -> None:
    with torch.no_grad():
        names = names_of_call(Two(), [torch.ones(3, 3)], torch.device("cpu"))
    assert names == ["aten::relu", "aten::linear", "aten::add"]


def test_the_record_of_a_candidate_that_passed_has_them(bench: Bench) -> None:
    record = bench.judge("rms_norm", rms_norm(RIGHT), CONFIG)
    assert record.verdict == Verdict.PASSED, record.message
    assert {"aten::rsqrt", "aten::mean"} <= set(record.launched)
    assert record.to_json()["launched"] == record.launched


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("['mine', 'mine', 3, 'a' * 999, '', chr(7)]", ["mine", "a" * MOST_CHARACTERS]),
        ("{'a': 1}", []),
        ("1 / 0", []),
        ("__import__('os')._exit(1)", []),
    ],
)
def test_what_a_candidate_says_of_itself_changes_no_verdict(bench: Bench, said: str, kept: list[str]) -> None:
    record = bench.judge("rms_norm", LYING.format(said=said) + rms_norm(RIGHT), CONFIG)
    assert record.verdict == Verdict.PASSED, record.message
    assert record.launched == kept


def test_of_a_wrong_candidate_there_are_none(bench: Bench) -> None:
    record = bench.judge("rms_norm", rms_norm("return x, residual"), CONFIG)
    assert record.verdict == Verdict.INCORRECT_NUMERICAL
    assert record.launched == []


@pytest.mark.parametrize("reply", [{}, {"names": None}, {"names": "abc"}, {"names": [1, ["x"], " "]}])
def test_a_malformed_reply_is_no_names(reply: dict[str, Any]) -> None:
    assert read_names(reply) == []


def test_names_are_as_many_as_a_page_has_room_for() -> None:
    assert len(read_names({"names": [f"kernel_{i}" for i in range(1000)]})) == MOST_NAMES
