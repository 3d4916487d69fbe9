"""What each row's request asks of sampling, in device tensors by row.

A request is staged on the host when it comes; the next batch writes all that were staged, in its stream.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.engine.structured import num_mask_words

_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
_PACKED = struct.Struct("=q6f2ii")  # seed; the floats; top_k, mask row; then the row that is written
_NUM_COLUMNS = 8
_LEAST_BIASES = 8


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """One asynchronous copy: the caching host allocator keeps the pinned block until the copy is done."""
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
    """Scalars and the seed by row."""

    def __init__(self, device: torch.device, max_rows: int) -> None:
        self.device = device
        self._table = torch.zeros((_NUM_COLUMNS, max_rows), dtype=torch.int32, device=device)
        self.seeds = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._staged: dict[int, bytes] = {}

    def stage(self, row: int, params: SamplingParams, seed: int, is_masked: bool) -> None:
        floats = (float(getattr(params, name)) for name in _FLOATS)
        self._staged[row] = _PACKED.pack(seed, *floats, params.top_k, row if is_masked else -1, row)

    def flush(self) -> None:
        if not self._staged:
            return
        num = len(self._staged)
        words = np.frombuffer(b"".join(self._staged.values()), dtype=np.int32).reshape(num, -1)
        packed = to_device(np.concatenate((words[:, :2].ravel(), words[:, 2:].T.ravel())), self.device)
        seeds, columns = packed[: 2 * num].view(torch.int64), packed[2 * num :].view(-1, num)
        rows = columns[-1].long()
        self._table.index_copy_(1, rows, columns[:_NUM_COLUMNS])
        self.seeds.index_copy_(0, rows, seeds)
        self._staged.clear()

    def gather(self, row_index: Tensor) -> RowValues:
        columns = self._table.index_select(1, row_index)
        return RowValues(*columns[: len(_FLOATS)].view(torch.float32).unbind(), *columns[len(_FLOATS) :].unbind())


class TokenCounts:
    """How often each row's prompt and answer hold each token, as ApplyPenalties reads it.

    Shapes:  counts: [max_rows, vocab_size] int32, allocated when the first row has a penalty.
    """

    def __init__(self, device: torch.device, max_rows: int, vocab_size: int) -> None:
        self.device, self.max_rows, self.vocab_size = device, max_rows, vocab_size
        self.counts: Tensor | None = None
        self._staged: dict[int, np.ndarray] = {}

    def stage(self, row: int, prompt: Sequence[int], output: Sequence[int]) -> None:
        made, times = np.unique(np.asarray(output, dtype=np.int64), return_counts=True)
        given = np.unique(np.asarray(prompt, dtype=np.int64))
        tokens, places = np.unique(np.concatenate((made, given)), return_inverse=True)
        values = np.bincount(places, np.concatenate((2 * times, np.ones(len(given)))), minlength=len(tokens))
        self._staged[row] = np.stack((row * self.vocab_size + tokens, values.astype(np.int64)))

    def discard(self, row: int) -> None:
        self._staged.pop(row, None)

    def flush(self) -> None:
        if not self._staged:
            return
        if self.counts is None:
            self.counts = torch.zeros((self.max_rows, self.vocab_size), dtype=torch.int32, device=self.device)
        rows = np.fromiter(self._staged, dtype=np.int64, count=len(self._staged))
        entries = np.concatenate(list(self._staged.values()), axis=1)
        packed = to_device(np.concatenate((rows, entries.ravel())), self.device)
        places, values = packed[len(rows) :].view(2, -1)
        self.counts.index_fill_(0, packed[: len(rows)], 0)
        self.counts.view(-1).index_copy_(0, places, values.int())
        self._staged.clear()

    def add(self, row_index: Tensor, token_ids: Tensor) -> None:
        """Each row has made one more token. Shapes: both [n], rows unlike."""
        if self.counts is not None:
            two = torch.full_like(token_ids, 2, dtype=torch.int32)
            self.counts.view(-1).index_add_(0, row_index * self.vocab_size + token_ids, two)


class Biases:
    """What is added to a row's logits up to a position: logit_bias for good, -inf to end tokens before min_tokens.

    Shapes:  the table: [max_rows, 3, num_biases] int32: token ids, biases' bits, the first position without.
    """

    FOREVER = 2**31 - 1

    def __init__(self, device: torch.device, max_rows: int) -> None:
        self.device, self.max_rows = device, max_rows
        self._table: Tensor | None = None
        self._staged: dict[int, np.ndarray] = {}

    def stage(self, row: int, entries: Sequence[tuple[int, float, int]]) -> None:
        """entries: (token, bias, first position without it)."""
        ids, biases, ends = zip(*entries, strict=True)
        bits = np.array(biases, dtype=np.float32).view(np.int32)
        self._staged[row] = np.stack((np.array(ids, dtype=np.int32), bits, np.array(ends, dtype=np.int32)))

    def discard(self, row: int) -> None:
        """Leaves no bias behind."""
        self._staged.pop(row, None)
        if self._table is not None:
            self._staged[row] = np.zeros((3, 0), dtype=np.int32)

    def flush(self) -> None:
        if not self._staged:
            return
        table = self._grown(max(entries.shape[1] for entries in self._staged.values()))
        packed = np.zeros((len(self._staged), 3 * table.shape[2] + 1), dtype=np.int32)
        for line, (row, entries) in zip(packed, self._staged.items(), strict=True):
            line[-1] = row
            line[:-1].reshape(3, -1)[:, : entries.shape[1]] = entries
        written = to_device(packed, self.device)
        table.index_copy_(0, written[:, -1].long(), written[:, :-1].reshape(-1, 3, table.shape[2]))
        self._staged.clear()

    def _grown(self, num: int) -> Tensor:
        before = self._table
        if before is None or before.shape[2] < num:
            width = max(_LEAST_BIASES, 1 << (num - 1).bit_length())
            self._table = torch.zeros((self.max_rows, 3, width), dtype=torch.int32, device=self.device)
            if before is not None:
                self._table[:, :, : before.shape[2]] = before
        assert self._table is not None
        return self._table

    def gather(self, row_index: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(token ids, biases): [n, num_biases], 0 where a bias has ended."""
        assert self._table is not None
        entries = self._table.index_select(0, row_index)
        biases = entries[:, 1].view(torch.float32)
        return entries[:, 0].long(), biases.masked_fill(entries[:, 2] <= positions[:, None], 0.0)


class TokenMasks:
    """Which tokens a row may draw, one bit a token. Shapes: masks: [max_rows, num_words] int32."""

    def __init__(self, device: torch.device, max_rows: int, vocab_size: int) -> None:
        self.device, self.max_rows, self.num_words = device, max_rows, num_mask_words(vocab_size)
        self.masks: Tensor | None = None
        self._staged: dict[int, np.ndarray] = {}

    def stage(self, row: int, mask: np.ndarray) -> None:
        self._staged[row] = mask

    def discard(self, row: int) -> None:
        self._staged.pop(row, None)

    def flush(self) -> None:
        if not self._staged:
            return
        if self.masks is None:
            self.masks = torch.zeros((self.max_rows, self.num_words), dtype=torch.int32, device=self.device)
        rows = np.fromiter(self._staged, dtype=np.int32, count=len(self._staged))
        packed = to_device(np.column_stack((np.stack(list(self._staged.values())), rows)), self.device)
        self.masks.index_copy_(0, packed[:, -1].long(), packed[:, :-1])
        self._staged.clear()
