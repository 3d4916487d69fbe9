"""What each row's request asks of sampling, in device tensors by row: written when a request comes, read every step."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastkernels.engine.sampling_params import SamplingParams

_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
_PACKED = struct.Struct("=6f2iqi")  # the floats; top_k, mask row; seed; then the row that is written
_NUM_COLUMNS = 8


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """One asynchronous copy: the pinned block is kept by the caching allocator until the copy is done."""
    host = torch.from_numpy(values)
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class RowValues:
    """The parameters of the rows of one batch. Shapes: all [n]; top_k and mask_index int32, the others float32.

    mask_index: the row of the allowed-token masks, -1 where every token is allowed.
    """

    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition_penalty: Tensor
    frequency_penalty: Tensor
    presence_penalty: Tensor
    top_k: Tensor
    mask_index: Tensor


class RowTable:
    """Parameters by row. `stage` notes a row on the host; `flush` writes all that were noted with one copy."""

    def __init__(self, device: torch.device, max_rows: int) -> None:
        self.device = device
        self._table = torch.zeros((_NUM_COLUMNS, max_rows), dtype=torch.int32, device=device)
        self.seeds = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._staged: dict[int, bytes] = {}

    def stage(self, row: int, params: SamplingParams, seed: int, is_masked: bool) -> None:
        floats = (float(getattr(params, name)) for name in _FLOATS)
        self._staged[row] = _PACKED.pack(*floats, params.top_k, row if is_masked else -1, seed, row)

    def discard(self, row: int) -> None:
        self._staged.pop(row, None)

    def flush(self) -> None:
        if not self._staged:
            return
        words = np.frombuffer(b"".join(self._staged.values()), dtype=np.int32)
        packed = to_device(words.reshape(len(self._staged), -1).T.copy(), self.device)
        rows = packed[-1].long()
        self._table.index_copy_(1, rows, packed[:_NUM_COLUMNS])
        seeds = packed[_NUM_COLUMNS : _NUM_COLUMNS + 2].t().contiguous().view(torch.int64).flatten()
        self.seeds.index_copy_(0, rows, seeds)
        self._staged.clear()

    def gather(self, row_index: Tensor) -> RowValues:
        columns = self._table.index_select(1, row_index)
        return RowValues(*columns[: len(_FLOATS)].view(torch.float32).unbind(), *columns[len(_FLOATS) :].unbind())
