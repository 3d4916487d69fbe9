"""Draws the next token of every row of a batch on the device: nothing here waits for it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.engine.sampling_rows import RowTable
from fastkernels.registry import find_ops


def sampling_op(name: str, *args: object) -> nn.Module:
    """An L1 op, or what replaces it."""
    entry = find_ops(name)[0]
    return getattr(importlib.import_module(entry.module), entry.class_name)(*args)


@dataclass(frozen=True)
class Sampled:
    """What was drawn. token_ids: [n] int64 on the device."""

    token_ids: Tensor
    logprobs: None = None


class Sampler:
    """Parameters, seeds and token counts by the engine's row; a batch is any of the rows in any order.

    A draw depends on the row's logits, its request's parameters and seed, and the token's position alone.
    """

    def __init__(self, vocab_size: int, device: torch.device, max_rows: int) -> None:
        self.vocab_size, self.device, self.max_rows = vocab_size, device, max_rows
        self._greedy = sampling_op("greedy_sample")
        self._draw = sampling_op("top_k_top_p_sample")
        self._seeds = sampling_op("draw_seeds")
        self._table = RowTable(device, max_rows)
        self._drawn: set[int] = set()

    def add(
        self,
        row: int,
        params: SamplingParams,
        seed: int,
        prompt_token_ids: Sequence[int],
        output_token_ids: Sequence[int] = (),
    ) -> None:
        """A request takes a row; after a preemption with the tokens that it has made."""
        self.remove(row)
        self._table.stage(row, params, seed, is_masked=False)
        if not params.is_greedy:
            self._drawn.add(row)

    def remove(self, row: int) -> None:
        self._drawn.discard(row)
        self._table.discard(row)

    def needs_tokens(self, row: int) -> bool:
        """Whether `accept` must have heard of the row's last token before the row is sampled again."""
        return False

    def accept(self, row: int, token: int) -> None:
        """A token of the row is final."""

    @torch.inference_mode()
    def __call__(self, logits: Tensor, rows: Sequence[int], row_index: Tensor, positions: Tensor) -> Sampled:
        """Draw one token a row.

        Shapes:  logits: [n, vocab_size], read only; row_index: [n] int64, rows on the device; positions: [n] int64,
                 of the tokens that are drawn.
        """
        if self._drawn.isdisjoint(rows):
            return Sampled(self._greedy(logits))
        self._table.flush()
        values = self._table.gather(row_index)
        seeds = self._seeds(self._table.seeds, row_index, positions)
        return Sampled(self._draw(logits, values.temperature, values.top_k, values.top_p, seeds))
