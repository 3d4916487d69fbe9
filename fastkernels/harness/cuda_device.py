"""A worker's GPU. A call waits in the harness's stream, behind a word of shared memory that the judge writes, so that
all of it, the filling of its inputs included, happens between two readings of the judge's clock.

In stream order: wait for the word, event, copy the call's secrets, fill the inputs, poison, flush the L2 cache,
event, forward, event, copy the answer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.harness.arena import CONTROL_BYTES, SHIFT_START, VECTOR_START, Arena
from fastkernels.harness.control import Word
from fastkernels.harness.cuda import DEVICE_TO_DEVICE, DEVICE_TO_HOST, HOST_TO_DEVICE, Cuda
from fastkernels.harness.device import default_dtype, describe
from fastkernels.harness.sample import Sample
from fastkernels.harness.vary import PERIOD

_data_ptr = torch._C.TensorBase.data_ptr
_fill = torch._C.TensorBase.fill_
_perf_counter_ns = time.perf_counter_ns
_CALLS_PER_GRAPH = 20
_NUM_PLACES, _MANY_BYTES = 3, 256 << 20
_SECRETS_BYTES = SHIFT_START + 8 - VECTOR_START


class CudaDevice:
    """Cases are mirrored on the GPU; each call's inputs are filled in from there at one of several addresses."""

    def __init__(self, name: str, arena: Arena) -> None:
        self.torch_device = torch.device("cuda", torch.device(name).index or 0)
        torch.cuda.set_device(self.torch_device)
        torch.cuda.init()
        self._stream = torch.cuda.Stream()
        self._set_stream = torch.cuda.set_stream
        self._set_stream(self._stream)
        self._handle = self._stream.cuda_stream
        self._released, self._start, self._stop = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        self._record = torch._C._CudaEventBase.record
        self._elapsed = torch._C._CudaEventBase.elapsed_time
        self._synchronize = torch._C._cuda_synchronize
        self._secrets = torch.empty(_SECRETS_BYTES, dtype=torch.uint8, device=self.torch_device)
        self._cuda = Cuda()
        self._control = _data_ptr(arena.control)
        self._cuda.register(self._control, CONTROL_BYTES)
        self._limit = self._cuda.persisting_limit()
        self._flush: Tensor | None = None
        self._started_at = 0

    @contextlib.contextmanager
    def building(self, dtype: torch.dtype) -> Iterator[None]:
        with default_dtype(dtype), self.torch_device:
            yield

    def mirror(self, regions: list[Tensor]) -> list[Tensor]:
        return [region.to(self.torch_device) for region in regions]

    def working_regions(self, num_bytes: int) -> list[Tensor]:
        """Several of them, so that no call can know the next one's addresses; of large ones two."""
        count = _NUM_PLACES if num_bytes <= _MANY_BYTES else 2
        return [torch.empty(num_bytes, dtype=torch.uint8, device=self.torch_device) for _ in range(count)]

    def snapshot_buffer(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.torch_device)

    def poison_region(self, region: Tensor) -> None:
        _fill(region, 0xFF)

    def poison(self, num_bytes: int) -> None:
        """Leave 0xFF (NaN) in the memory that the next allocations of this size are given."""
        if num_bytes:
            blocks = [torch.empty(num_bytes, dtype=torch.uint8, device=self.torch_device) for _ in range(2)]
            for block in blocks:
                _fill(block, 0xFF)

    def before_ready(self, poison_bytes: int) -> str:
        """Nothing is kept in the L2 cache and the device is idle; what was changed about it, if anything was."""
        self._set_stream(self._stream)
        limit = self._cuda.persisting_limit()
        self._cuda.drop_persisting_lines(self._handle, self._limit)
        self._synchronize()
        if limit != self._limit:
            return f"the share of the L2 cache that may be kept was set to {limit} bytes (it was {self._limit})"
        return ""

    def hold(self, sequence: int) -> None:
        """What is enqueued from here on runs when the judge writes `sequence` to RELEASE."""
        self._cuda.wait_for_word(self._handle, self._control + 8 * Word.RELEASE, sequence)
        self._record(self._released, self._stream)

    def secrets(self) -> tuple[Tensor, Tensor]:
        """The call's vector and shift, copied in stream order: the host never has them before the clock runs."""
        address = self._control + VECTOR_START
        self._cuda.copy_in_stream(_data_ptr(self._secrets), address, _SECRETS_BYTES, HOST_TO_DEVICE, self._handle)
        vector = self._secrets[: 4 * PERIOD].view(torch.float32)
        return vector, self._secrets[SHIFT_START - VECTOR_START :].view(torch.int64)[0]

    def flush(self, num_bytes: int) -> None:
        """Write twice the L2 cache, so that no input is left in it."""
        if num_bytes:
            if self._flush is None or self._flush.numel() != num_bytes:
                self._flush = torch.empty(num_bytes, dtype=torch.uint8, device=self.torch_device)
            _fill(self._flush, 1)

    def start_clock(self) -> None:
        self._record(self._start, self._stream)
        self._started_at = _perf_counter_ns()

    def stop_clock(self) -> int:
        """Nanoseconds of host time that forward took."""
        host_ns = _perf_counter_ns() - self._started_at
        self._record(self._stop, self._stream)
        return host_ns

    def join(self, *, is_timed: bool) -> tuple[int, int]:
        """Wait until the device is idle, other streams included; nanoseconds between the events around forward, and
        from the release to the first of them."""
        self._synchronize()
        if not is_timed:
            return 0, 0
        events = ((self._start, self._stop), (self._released, self._start))
        first, second = (int(self._elapsed(*pair) * 1e6) for pair in events)
        return first, second

    def copy_behind(self, tensor: Tensor, target: Tensor) -> None:
        """In the harness's stream, whatever stream the caller left current."""
        self._cuda.copy_in_stream(_data_ptr(target), _data_ptr(tensor), target.numel(), DEVICE_TO_DEVICE, self._handle)

    def synchronize(self) -> None:
        self._synchronize()

    def describe(self, tensor: Tensor) -> dict[str, Any]:
        return describe(tensor, "cuda")

    def copy_raw(self, tensor: Tensor, target: Tensor) -> None:
        self._cuda.copy(_data_ptr(target), _data_ptr(tensor), target.numel(), DEVICE_TO_HOST)

    def copy_pieces(self, tensor: Tensor, chosen: Sample, target: Tensor) -> None:
        """In one operation: of many, the launches would take longer than the bytes."""
        source = _data_ptr(tensor) + chosen.start
        self._cuda.copy_pieces(_data_ptr(target), source, chosen.width, chosen.step, chosen.count, DEVICE_TO_HOST)

    def time_graph(self, module: nn.Module, arguments: list[Any], count: int) -> list[int]:
        for _ in range(3):
            module(*arguments)
        self._synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(_CALLS_PER_GRAPH):
                module(*arguments)
        self._set_stream(self._stream)  # a replay goes to the current one: `module` may have left another
        times = []
        for _ in range(count):
            self._record(self._start, self._stream)
            graph.replay()
            self._record(self._stop, self._stream)
            self._synchronize()
            times.append(int(self._elapsed(self._start, self._stop) * 1e6 / _CALLS_PER_GRAPH))
        return times
