"""What a step tells the layers beside their arguments: where each token sits in the paged cache.

The engine sets one ForwardContext per step; attention layers read it. A capture records it with
the case, so that a layer replays without an engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from enum import StrEnum

import torch
from torch import Tensor


class Phase(StrEnum):
    """What a batch holds: only first chunks with nothing cached, only single tokens, or a mixture."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


@dataclass(frozen=True)
class ForwardContext:
    """The geometry of one batch of variable-length sequences over pages of the KV cache.

    Shapes:  query_start_loc: [num_seqs + 1] int32; seq_lens: [num_seqs] int32 (cached + new tokens);
             block_table: [num_seqs, max_pages] int32, negative entries never read;
             slot_mapping: [num_tokens] int64, page * page_size + offset, -1 where nothing is stored.
    """

    query_start_loc: Tensor
    seq_lens: Tensor
    block_table: Tensor
    slot_mapping: Tensor
    max_query_len: int
    max_seq_len: int
    phase: Phase

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}

    def to(self, device: torch.device | str) -> ForwardContext:
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})


_context: ContextVar[ForwardContext | None] = ContextVar("fastkernels_forward_context", default=None)
_reference: ContextVar[bool] = ContextVar("fastkernels_reference", default=False)


def forward_context() -> ForwardContext:
    """The context of the running step.

    Errors: RuntimeError outside of one.
    """
    context = _context.get()
    if context is None:
        raise RuntimeError("This layer reads the paged cache: call it inside set_forward_context(...).")
    return context


def forward_context_or_none() -> ForwardContext | None:
    return _context.get()


@contextmanager
def set_forward_context(context: ForwardContext | None) -> Iterator[None]:
    """Nested contexts are refused: a step inside a step has no meaning."""
    if context is not None and _context.get() is not None:
        raise RuntimeError("A forward context is already set; steps do not nest.")
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


@contextmanager
def reference_mode() -> Iterator[None]:
    """Inside, every op computes its definition instead of its production path."""
    token = _reference.set(True)
    try:
        yield
    finally:
        _reference.reset(token)


def uses_reference(*tensors: Tensor | None) -> bool:
    """Whether an op should compute its definition: asked for, or no tensor is on a GPU."""
    return _reference.get() or not any(t is not None and t.is_cuda for t in tensors)
