"""A worker's GPU with a stand-in for CUDA: streams that take work in order, events on a clock of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from fastkernels.harness.cuda_device import CudaDevice

_REPLAY_NS = 40_000.0


class FakeCuda:
    """The work enqueued on each stream, in nanoseconds; an event notes how far its stream is."""

    def __init__(self) -> None:
        self.current, self.done = "default", dict.fromkeys(("default", "harness", "other"), 0.0)

    def set_stream(self, stream: str) -> None:
        self.current = stream

    def replay(self) -> None:
        self.done[self.current] += _REPLAY_NS

    @contextlib.contextmanager
    def graph(self, _: Any) -> Iterator[None]:
        before, self.current = self.current, "capture"
        yield
        self.current = before

    def device(self) -> CudaDevice:
        device = object.__new__(CudaDevice)
        device._stream, device._set_stream, device._synchronize = "harness", self.set_stream, lambda: None  # type: ignore[assignment]
        device._start, device._stop = {}, {}  # type: ignore[assignment]
        device._record = lambda event, stream: event.update(at=self.done[stream])
        device._elapsed = lambda start, stop: (stop["at"] - start["at"]) / 1e6
        return device


class LeavesAnotherStream(nn.Module):
    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def forward(self) -> None:
        if self.cuda.current != "capture":
            self.cuda.set_stream("other")


def test_a_graph_is_replayed_between_the_events_whatever_stream_was_left_current(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "graph", cuda.graph)
    cuda.set_stream("harness")
    assert cuda.device().time_graph(LeavesAnotherStream(cuda), [], 3) == [int(_REPLAY_NS / 20)] * 3
