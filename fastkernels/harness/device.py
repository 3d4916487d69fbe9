"""What a worker does differently on a CPU and on a GPU: staging, poisoning, flushing, clocks, raw bytes."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.harness.arena import dtype_name, extent

_data_ptr = torch._C.TensorBase.data_ptr
_storage_offset = torch._C.TensorBase.storage_offset
_untyped_storage = torch._C.TensorBase.untyped_storage
_memmove = ctypes.memmove
_perf_counter_ns = time.perf_counter_ns


def device_for(name: str) -> CpuDevice | CudaDevice:
    return CudaDevice(name) if name.startswith("cuda") else CpuDevice()


def describe(tensor: Tensor, device_type: str) -> dict[str, Any]:
    """Facts of an exact torch.Tensor, read without calling anything that an instance could override."""
    base = torch._C.TensorBase
    shape, stride = list(base.size(tensor)), []
    record: dict[str, Any] = {"kind": "tensor", "shape": shape}
    if base.layout.__get__(tensor) is not torch.strided:  # type: ignore[attr-defined]
        return {**record, "problem": "is not a strided tensor"}
    stride = list(base.stride(tensor))
    dtype = base.dtype.__get__(tensor)  # type: ignore[attr-defined]
    device = base.device.__get__(tensor)  # type: ignore[attr-defined]
    record |= {"stride": stride, "dtype": dtype_name(dtype), "num_bytes": extent(shape, stride) * dtype.itemsize}
    if device.type != device_type:
        return {**record, "problem": f"is on {device}, not on {device_type}"}
    if base.is_conj(tensor) or base.is_neg(tensor):
        return {**record, "problem": "has a pending conjugation or negation"}
    storage = _untyped_storage(tensor)
    end = _storage_offset(tensor) * dtype.itemsize + record["num_bytes"]
    if end > storage.nbytes():
        return {**record, "problem": "reaches past its storage"}
    record["address"] = _data_ptr(tensor)
    return record


class CpuDevice:
    """Inputs are used where the judge put them: the judge sees every write."""

    is_remote = False
    torch_device = torch.device("cpu")
    enqueue_ns = 0

    @contextlib.contextmanager
    def building(self, dtype: torch.dtype) -> Iterator[None]:
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(previous)

    def mirror(self, regions: list[Tensor]) -> list[Tensor]:
        return regions

    def working_region(self, regions: list[Tensor], num_bytes: int) -> Tensor:
        return regions[0]

    def stage(self, region: Tensor, work: Tensor) -> Tensor:
        return region

    def place(self, tensor: Tensor) -> Tensor:
        return tensor

    def poison(self, num_bytes: int) -> None:
        """Leave 0xFF (NaN) in the memory that the next allocations of this size are given."""
        if num_bytes:
            blocks = [torch.empty(num_bytes, dtype=torch.uint8) for _ in range(2)]
            for block in blocks:
                block.fill_(0xFF)

    def flush(self, num_bytes: int) -> None:
        if num_bytes:
            torch.empty(num_bytes, dtype=torch.uint8).fill_(1)

    def start_clock(self, hold_cycles: int) -> None:
        pass

    def stop_clock(self) -> int:
        return 0

    def synchronize(self) -> None:
        pass

    def memory_bytes(self) -> int:
        return 0

    def describe(self, tensor: Tensor) -> dict[str, Any]:
        return describe(tensor, "cpu")

    def copy_raw(self, tensor: Tensor, target: Tensor) -> None:
        _memmove(_data_ptr(target), _data_ptr(tensor), target.numel())

    def time_graph(self, module: nn.Module, arguments: list[Any], count: int) -> list[int]:
        raise RuntimeError("CUDA graphs need a GPU.")


class CudaDevice:
    """Inputs are mirrored on the GPU region by region; time is device events, the judge's clock checks them."""

    is_remote = True

    def __init__(self, name: str) -> None:
        self.torch_device = torch.device("cuda", torch.device(name).index or 0)
        torch.cuda.set_device(self.torch_device)
        torch.cuda.init()
        self._stream = torch.cuda.Stream()
        torch.cuda.set_stream(self._stream)
        self._start = torch.cuda.Event(enable_timing=True)
        self._stop = torch.cuda.Event(enable_timing=True)
        self._record = torch._C._CudaEventBase.record
        self._elapsed = torch._C._CudaEventBase.elapsed_time
        self._synchronize = torch._C._cuda_synchronize
        self._sleep = torch._C._cuda_sleep
        self._flush: Tensor | None = None
        self._enqueued_at = 0
        self._copy = _cuda_memcpy()
        self.enqueue_ns = 0

    @contextlib.contextmanager
    def building(self, dtype: torch.dtype) -> Iterator[None]:
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with self.torch_device:
                yield
        finally:
            torch.set_default_dtype(previous)

    def mirror(self, regions: list[Tensor]) -> list[Tensor]:
        return [region.to(self.torch_device) for region in regions]

    def working_region(self, regions: list[Tensor], num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.torch_device)

    def stage(self, region: Tensor, work: Tensor) -> Tensor:
        work.copy_(region)
        return work

    def place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.torch_device)

    def poison(self, num_bytes: int) -> None:
        if num_bytes:
            blocks = [torch.empty(num_bytes, dtype=torch.uint8, device=self.torch_device) for _ in range(2)]
            for block in blocks:
                block.fill_(0xFF)

    def flush(self, num_bytes: int) -> None:
        """Write twice the L2 cache, so that no input is left in it; then wait until the device is idle."""
        if num_bytes:
            if self._flush is None or self._flush.numel() != num_bytes:
                self._flush = torch.empty(num_bytes, dtype=torch.uint8, device=self.torch_device)
            self._flush.fill_(1)
        self._synchronize()

    def start_clock(self, hold_cycles: int) -> None:
        """The stream is held by a spinning kernel while the host enqueues, so launches cost no device time."""
        self._sleep(hold_cycles)
        self._record(self._start, self._stream)
        self._enqueued_at = _perf_counter_ns()

    def stop_clock(self) -> int:
        self.enqueue_ns = _perf_counter_ns() - self._enqueued_at
        self._record(self._stop, self._stream)
        self._synchronize()
        return int(self._elapsed(self._start, self._stop) * 1e6)

    def synchronize(self) -> None:
        self._synchronize()

    def memory_bytes(self) -> int:
        free, total = torch.cuda.mem_get_info()
        return total - free

    def describe(self, tensor: Tensor) -> dict[str, Any]:
        return describe(tensor, "cuda")

    def copy_raw(self, tensor: Tensor, target: Tensor) -> None:
        status = self._copy(_data_ptr(target), _data_ptr(tensor), target.numel(), 2)
        if status:
            raise RuntimeError(f"cudaMemcpy of an answer failed with error {status}.")

    def time_graph(self, module: nn.Module, arguments: list[Any], count: int) -> list[int]:
        for _ in range(3):
            module(*arguments)
        self._synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(_CALLS_PER_GRAPH):
                module(*arguments)
        times = []
        for _ in range(count):
            self._record(self._start, self._stream)
            graph.replay()
            self._record(self._stop, self._stream)
            self._synchronize()
            times.append(int(self._elapsed(self._start, self._stop) * 1e6 / _CALLS_PER_GRAPH))
        return times


_CALLS_PER_GRAPH = 20


def _cuda_memcpy() -> Any:
    """cudaMemcpy of the runtime that torch has loaded."""
    with open("/proc/self/maps") as maps:
        path = next(line.split()[-1] for line in maps if "libcudart.so" in line)
    function = ctypes.CDLL(path).cudaMemcpy
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
