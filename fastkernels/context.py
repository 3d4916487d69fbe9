"""What a step tells the layers beside their arguments: where each token sits in the paged cache.

The engine sets one ForwardContext per step; attention layers read it. A capture records it with
the case, so that a layer replays without an engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the fake device does without torch
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
             slot_mapping: [num_tokens] int64, page * page_size + offset, -1 where nothing is stored;
             num_decodes: at least so many sequences at the front have a single new token;
             window_block_table, window_slot_mapping: the same for layers that see a window, entries behind it
             negative; cross_block_table, cross_seq_lens: pages and length of each sequence's encoder states,
             cross_slot_mapping: where the encoder states that come with this step are stored;
             state_slots: [num_seqs] int32, the slot of each sequence's states; has_initial_state: [num_seqs] bool,
             whether the slot holds anything of it yet.
    """

    query_start_loc: Tensor
    seq_lens: Tensor
    block_table: Tensor
    slot_mapping: Tensor
    max_query_len: int
    max_seq_len: int
    phase: Phase
    num_decodes: int = 0
    window_block_table: Tensor | None = None
    window_slot_mapping: Tensor | None = None
    cross_block_table: Tensor | None = None
    cross_seq_lens: Tensor | None = None
    cross_slot_mapping: Tensor | None = None
    state_slots: Tensor | None = None
    has_initial_state: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name in _TENSORS if (value := getattr(self, name)) is not None}

    def to(self, device: torch.device | str) -> ForwardContext:
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)


_TENSORS = tuple(f.name for f in fields(ForwardContext) if str(f.type).startswith("Tensor"))


class _State:
    """Of this process: one step runs at a time. Plain attributes, because torch.compile cannot trace a ContextVar."""

    context: ForwardContext | None = None
    is_reference: bool = False


def forward_context() -> ForwardContext:
    """The context of the running step.

    Errors: RuntimeError outside of one.
    """
    context = _State.context
    if context is None:
        raise RuntimeError("This layer reads the paged cache: call it inside set_forward_context(...).")
    return context


def forward_context_or_none() -> ForwardContext | None:
    return _State.context


@contextmanager
def set_forward_context(context: ForwardContext | None) -> Iterator[None]:
    """Nested contexts are refused: a step inside a step has no meaning."""
    if context is not None and _State.context is not None:
        raise RuntimeError("A forward context is already set; steps do not nest.")
    before, _State.context = _State.context, context
    try:
        yield
    finally:
        _State.context = before


@contextmanager
def reference_mode() -> Iterator[None]:
    """Inside, every op computes its definition instead of its production path."""
    before, _State.is_reference = _State.is_reference, True
    try:
        yield
    finally:
        _State.is_reference = before


def is_reference_asked() -> bool:
    """Whether an op whose production path also runs on a CPU should compute its definition."""
    return _State.is_reference


def uses_reference(*tensors: Tensor | None) -> bool:
    """Whether an op should compute its definition: asked for, or no tensor is on a GPU."""
    return _State.is_reference or not any(t is not None and t.is_cuda for t in tensors)
