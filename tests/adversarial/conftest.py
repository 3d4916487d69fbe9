"""One process that starts workers for all tests of this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastkernels.adversarial.self_test import SelfTest


@pytest.fixture(scope="session")
def cpu_suite() -> Iterator[SelfTest]:
    with SelfTest("cpu") as suite:
        yield suite


@pytest.fixture(scope="session")
def gpu_suite() -> Iterator[SelfTest]:
    assert torch.cuda.is_available()
    with SelfTest("cuda") as suite:
        yield suite
