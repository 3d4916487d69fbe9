"""What all tests share: those marked gpu are skipped, and say so, where there is no GPU; long ones come first; Ctrl-C
works."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest
import torch

try:
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # not on every machine with a GPU; its tests are skipped or not asked for there
    pass
else:  # tests share two cores with others: how long an example takes says nothing
    settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("shared")

_FIRST = ("test_kernels_interpreter.py", "test_kernels_compile.py")
"""Files whose tests take a minute each: at the end of a run the other processes would wait for them."""


def pytest_configure() -> None:
    """A shell's background job ignores SIGINT, and so would every process that a test starts and interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """A million objects of modules and tests, which stay: they are not looked through again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _FIRST)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
