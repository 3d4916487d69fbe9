"""Host arrays to a device that is slower than the host: each step's copy takes what was put for that step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastkernels.engine.staging import Staging


class SlowDevice(TorchFunctionMode):
    """A stream of copies that run only when somebody waits for an event behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: list[Callable[[], object]] = []
        self.num_done = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        kwargs.pop("pin_memory", None)
        if not kwargs.pop("non_blocking", False):
            return func(*args, **kwargs)
        source, target = (args[0], torch.empty_like(args[0])) if func is Tensor.to else (args[1], args[0])
        self.queue.append(lambda: target.copy_(source))
        return target

    def copy_up_to(self, num: int) -> None:
        """The first `num` copies are done when this returns."""
        for copy in self.queue[self.num_done : num]:
            copy()
        self.num_done = max(self.num_done, num)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDevice]:
    stream = SlowDevice()

    class Event:
        num = 0

        def record(self) -> None:
            self.num = len(stream.queue)

        def synchronize(self) -> None:
            stream.copy_up_to(self.num)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    with stream:
        yield stream


def step_arrays(step: int) -> list[np.ndarray[Any, Any]]:
    """Of other sizes at each step, as chunks of a prompt may be."""
    return [np.arange(step, step + 5 + step % 3), np.full((2, 3 + step % 2), step, dtype=np.int32)]


def test_steps_that_nobody_waits_for_keep_their_own_arrays(slow: SlowDevice) -> None:
    staging = Staging(torch.device("cuda"))
    given = [staging.put(step_arrays(step)) for step in range(10)]
    assert slow.num_done == 7, "The host is three copies ahead, and no more."
    slow.copy_up_to(len(slow.queue))
    for step, tensors in enumerate(given):
        for tensor, wanted in zip(tensors, step_arrays(step), strict=True):
            assert np.array_equal(tensor.numpy(), wanted)


def test_a_graphs_buffer_takes_the_arrays_of_each_step_in_turn(slow: SlowDevice) -> None:
    staging, target = Staging(torch.device("cuda")), torch.zeros(256, dtype=torch.uint8)
    seen = []
    for step in range(10):
        (ids,) = staging.put([np.full(4, step)], target)
        slow.queue.append(lambda ids=ids: seen.append(ids.tolist()))
    slow.copy_up_to(len(slow.queue))
    assert seen == [[step] * 4 for step in range(10)]
