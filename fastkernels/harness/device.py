"""What a worker does differently on a CPU and on a GPU (cuda_device.py): memory, poison, clocks, raw bytes."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.harness.arena import dtype_name, extent
from fastkernels.harness.sample import Sample

_data_ptr = torch._C.TensorBase.data_ptr
_fill = torch._C.TensorBase.fill_
_storage_offset = torch._C.TensorBase.storage_offset
_untyped_storage = torch._C.TensorBase.untyped_storage
_memmove = ctypes.memmove


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


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

    torch_device = torch.device("cpu")

    def building(self, dtype: torch.dtype) -> contextlib.AbstractContextManager[None]:
        return default_dtype(dtype)

    def mirror(self, regions: list[Tensor]) -> list[Tensor]:
        return regions

    def working_regions(self, num_bytes: int) -> list[Tensor]:
        """None: the judge itself writes the values, where the arguments lie."""
        return []

    def snapshot_buffer(self, num_bytes: int) -> None:
        return None

    def poison(self, num_bytes: int) -> None:
        """Leave 0xFF (NaN) in the memory that the next allocations of this size are given."""
        if num_bytes:
            blocks = [torch.empty(num_bytes, dtype=torch.uint8) for _ in range(2)]
            for block in blocks:
                _fill(block, 0xFF)

    def before_ready(self, poison_bytes: int) -> str:
        """Make the machine ready for a call; what is wrong with it, if anything is."""
        self.poison(poison_bytes)
        return ""

    def hold(self, sequence: int) -> None:
        pass

    def start_clock(self) -> None:
        pass

    def stop_clock(self) -> int:
        """Nanoseconds of host time since start_clock; the judge's clock is the one that counts."""
        return 0

    def join(self, *, is_timed: bool) -> tuple[int, int]:
        """Wait until the device is idle; nanoseconds between the events, and from the release to the first."""
        return 0, 0

    def synchronize(self) -> None:
        pass

    def describe(self, tensor: Tensor) -> dict[str, Any]:
        return describe(tensor, "cpu")

    def copy_raw(self, tensor: Tensor, target: Tensor) -> None:
        _memmove(_data_ptr(target), _data_ptr(tensor), target.numel())

    def copy_pieces(self, tensor: Tensor, chosen: Sample, target: Tensor) -> None:
        source, end = _data_ptr(tensor) + chosen.start, _data_ptr(target)
        for index in range(chosen.count):
            _memmove(end + index * chosen.width, source + index * chosen.step, chosen.width)

    def poison_region(self, region: Tensor) -> None:
        raise NotImplementedError

    def secrets(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def flush(self, num_bytes: int) -> None:
        raise NotImplementedError

    def copy_behind(self, tensor: Tensor, target: Tensor) -> None:
        raise NotImplementedError

    def time_graph(self, module: nn.Module, arguments: list[Any], count: int) -> list[int]:
        raise RuntimeError("CUDA graphs need a GPU.")
