"""Shared memory between judge and worker: control pages, regions of tensors, guard bands.

The judge owns the layout. Tensors of one call lie in one region, each 256-byte aligned between
guard bands, so that a whole region moves to a GPU and back in one copy and the judge can see any
byte that changed.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastkernels.capture.tensors import stored
from fastkernels.harness.vary import PERIOD

GUARD_BYTES = 256
ALIGNMENT = 256
CONTROL_BYTES = 32768
VECTOR_START, SHIFT_START = 4096, 24576
GUARD_VALUE = 0xA5
POISON_VALUE = 0xFF  # NaN in every float format, -1 in every integer


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies in a region; offset in bytes from the region's start."""

    name: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Bytes from the first to the last element, gaps of a strided tensor included."""
        return extent(self.shape, self.stride) * dtype_of(self.dtype).itemsize

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "offset": self.offset,
            "shape": list(self.shape),
            "stride": list(self.stride),
            "dtype": self.dtype,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Slot:
        return cls(data["name"], data["offset"], tuple(data["shape"]), tuple(data["stride"]), data["dtype"])


def dtype_of(name: str) -> torch.dtype:
    """Errors: ValueError when `name` is no torch dtype."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is not a torch dtype.")
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from the first to the last one that a strided tensor reaches."""
    if any(size == 0 for size in shape):
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


@dataclass(frozen=True)
class Layout:
    """The tensors of one region and its size in bytes."""

    slots: tuple[Slot, ...]
    num_bytes: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        """Shapes and strides are kept as they are; an expanded tensor (stride 0) is held once."""
        slots, offset = [], GUARD_BYTES
        for name, tensor in tensors.items():
            slot = Slot(name, offset, tuple(tensor.shape), tuple(tensor.stride()), dtype_name(tensor.dtype))
            slots.append(slot)
            offset = aligned(offset + slot.num_bytes + GUARD_BYTES)
        return cls(tuple(slots), aligned(offset + GUARD_BYTES))

    def views(self, region: Tensor) -> dict[str, Tensor]:
        """Fresh tensor objects over `region`, a uint8 tensor on any device."""
        views = {}
        for slot in self.slots:
            dtype = dtype_of(slot.dtype)
            flat = region[slot.offset : slot.offset + slot.num_bytes].view(dtype)
            views[slot.name] = flat.as_strided(slot.shape, slot.stride)
        return views

    def write(self, region: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Guard value everywhere, then the tensors' values."""
        region[: self.num_bytes].fill_(GUARD_VALUE)
        for name, view in self.views(region).items():
            stored(view).copy_(stored(tensors[name], view.stride()))


def aligned(offset: int) -> int:
    """The next place in a region where a tensor may begin."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


class Arena:
    """An anonymous shared file, mapped: control pages, then bytes. The control pages hold 64-bit words, the vector
    by which a call's floats are multiplied, and what its tokens are shifted by.

    The descriptor is passed over a socket; nothing is left in /dev/shm when both sides are gone.
    """

    def __init__(self, num_bytes: int, fd: int | None = None) -> None:
        self.num_bytes = num_bytes
        if fd is None:
            fd = os.memfd_create("fastkernels", os.MFD_CLOEXEC)
            os.ftruncate(fd, CONTROL_BYTES + num_bytes)
        self.fd = fd
        self._map = mmap.mmap(fd, CONTROL_BYTES + num_bytes)
        self.bell = memoryview(self._map)[:VECTOR_START].cast("Q")
        self.control = torch.frombuffer(self._map, dtype=torch.uint8, count=CONTROL_BYTES)
        self.vector = self.control[VECTOR_START : VECTOR_START + 4 * PERIOD].view(torch.float32)
        self.shift = self.control[SHIFT_START : SHIFT_START + 8].view(torch.int64)
        self.bytes = torch.frombuffer(self._map, dtype=torch.uint8, offset=CONTROL_BYTES, count=num_bytes)

    def region(self, start: int, num_bytes: int) -> Tensor:
        if start < 0 or start + num_bytes > self.num_bytes:
            raise ValueError(f"Region [{start}, {start + num_bytes}) lies outside an arena of {self.num_bytes} bytes.")
        return self.bytes[start : start + num_bytes]

    def close(self) -> None:
        """The mapping goes with its last view; the descriptor now."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
