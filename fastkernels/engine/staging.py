"""Host arrays to the device with one copy a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastkernels.engine.batch import Array

ALIGNMENT = 16
_RING = 3
"""Blocks in turn, one a step: the copies of two earlier steps may be under way while a block is written. Steps that
sample nothing are never waited for, so that more would be; a block is written only when its own copy is done."""


class Staging:
    """Packs arrays into pinned memory and copies them in one piece; on a CPU they are used where they are."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._is_cuda = device.type == "cuda"
        self._blocks: list[Tensor | None] = [None] * _RING
        self._copied = [torch.cuda.Event() for _ in range(_RING)] if self._is_cuda else []
        self._turn = 0

    def put(self, arrays: Sequence[Array], target: Tensor | None = None) -> list[Tensor]:
        """The arrays on the device, in `target` (uint8) from its start when it is given.

        Equal shapes and dtypes give equal places in `target`, so that a graph finds them there again. Waits only for a
        device that has not come to the copy of three calls before.
        """
        if not self._is_cuda:
            return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        offsets, num_bytes = _layout(arrays)
        block = self._next_block(num_bytes)
        view = block.numpy()
        for array, offset in zip(arrays, offsets, strict=True):
            view[offset : offset + array.nbytes].view(array.dtype)[:] = array.ravel()
        if target is None:
            target = block[:num_bytes].to(self.device, non_blocking=True)
        else:
            target[:num_bytes].copy_(block[:num_bytes], non_blocking=True)
        self._copied[self._turn].record()
        return views(arrays, target)

    def _next_block(self, num_bytes: int) -> Tensor:
        self._turn = (self._turn + 1) % _RING
        self._copied[self._turn].synchronize()
        block = self._blocks[self._turn]
        if block is None or block.numel() < num_bytes:
            block = torch.empty(max(2 * num_bytes, 1 << 16), dtype=torch.uint8, pin_memory=True)
            self._blocks[self._turn] = block
        return block


def views(arrays: Sequence[Array], packed: Tensor) -> list[Tensor]:
    """Tensors over the places that `arrays` have in a packed block."""
    offsets, _ = _layout(arrays)
    result = []
    for array, offset in zip(arrays, offsets, strict=True):
        dtype = torch.from_numpy(array[:0]).dtype
        result.append(packed[offset : offset + array.nbytes].view(dtype).view(array.shape))
    return result


def packed_bytes(arrays: Sequence[Array]) -> int:
    """What a block must hold to take the arrays."""
    return _layout(arrays)[1]


def _layout(arrays: Sequence[Array]) -> tuple[list[int], int]:
    offsets, end = [], 0
    for array in arrays:
        offsets.append(end)
        end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return offsets, end


class Readback:
    """Results to the host without waiting: a pinned block of the caching allocator and an event each."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"

    def start(self, tensor: Tensor) -> PendingRead:
        """The copy is in stream order; `PendingRead.wait` blocks until it is done."""
        if not self._is_cuda:
            return PendingRead(tensor, None)
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return PendingRead(host, event)


class PendingRead:
    """A tensor on its way to the host."""

    def __init__(self, host: Tensor, event: torch.cuda.Event | None) -> None:
        self._host, self._event = host, event

    def wait(self) -> Tensor:
        if self._event is not None:
            self._event.synchronize()
        return self._host
