"""Every cheat is rejected with a verdict that is right for it; every honest twin passes."""

from __future__ import annotations

import pytest

from fastkernels.adversarial.catalogue import Item, items
from fastkernels.adversarial.self_test import SelfTest

ON_CPU = [
    pytest.param(item, id=item.name, marks=[pytest.mark.timed] if item.is_timed else [])
    for item in items()
    if item.runs_on("cpu")
]


def check(item: Item, suite: SelfTest) -> None:
    result = suite.judge(item)
    assert result.outcome in item.accepted, result.message or "every answer and time was believed"


@pytest.mark.parametrize("item", ON_CPU)
def test_a_file_of_the_suite_gets_its_verdict(item: Item, cpu_suite: SelfTest) -> None:
    check(item, cpu_suite)


@pytest.mark.gpu
@pytest.mark.parametrize("item", items(), ids=lambda item: item.name)
def test_a_file_of_the_suite_gets_its_verdict_on_a_gpu(item: Item, gpu_suite: SelfTest) -> None:
    check(item, gpu_suite)
