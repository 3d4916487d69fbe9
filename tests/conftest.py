"""What all tests share: those marked gpu are skipped, and say so, where there is no GPU; long ones come first."""

from __future__ import annotations

import pytest
import torch

_FIRST = ("test_kernels_interpreter.py", "test_kernels_compile.py")
"""Files whose tests take a minute each: at the end of a run the other processes would wait for them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _FIRST)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
