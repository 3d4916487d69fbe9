"""Attention of a decoder's tokens to the states of its sequences' encoder inputs, which lie in pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastkernels.cache import CacheKind, CacheSpec
from fastkernels.context import ForwardContext, Phase, forward_context, forward_context_or_none
from fastkernels.errors import UnsupportedError
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.flash_attn_decode import FlashAttnDecode
from fastkernels.tasks.baseline.L1.store_kvcache import StoreKVCache


class CrossAttention(Op):
    """Stores keys and values of the encoder states that come with a step; each token sees all of its sequence's.

    Each token is a sequence of its own to FlashAttnDecode, over the pages of the one that it belongs to: a prompt is a
    few tokens beside hundreds of states. A sequence without states, and a batch without cross_block_table, gets zeros.

    Shapes:  query, out: [num_tokens, num_heads * head_size]; key, value: [num_encoder_tokens, num_kv_heads *
             head_size], of the sequences that begin, one behind another: as many as the context's cross_slot_mapping.
    Dtypes:  bf16, fp16 or fp32; scores, softmax and sums in fp32; the cache is of the same dtype.
    Returns: out. Writes to kv_cache at the context's cross_slot_mapping; no argument is written to.
    Errors:  ValueError when a row is not of the op's size; RuntimeError outside of a forward context;
             UnsupportedError when states are needed and no cache is bound, or come without slots.
    Source:  Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762), section 3.2.3; as vLLM's CrossAttention.
    """

    spec = OpSpec(
        inputs={
            "query": TensorSpec(("num_tokens", "query_size")).strided(),
            "key": TensorSpec(("num_encoder_tokens", "kv_size")).strided().optional(),
            "value": TensorSpec(("num_encoder_tokens", "kv_size")).strided().optional(),
        },
        outputs={"out": TensorSpec(("num_tokens", "query_size"))},
        mutates=("kv_cache",),
        reads_context=True,
        examples=(
            {"num_heads": 4, "head_size": 16, "scale": 0.25, "num_kv_heads": 2},
            {"num_heads": 3, "head_size": 40, "scale": 40**-0.5},
        ),
    )

    def __init__(
        self, num_heads: int, head_size: int, scale: float, num_kv_heads: int | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        self.num_heads, self.head_size = num_heads, head_size
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.query_size, self.kv_size = num_heads * head_size, self.num_kv_heads * head_size
        self.cache_spec = CacheSpec(CacheKind.CROSS, self.num_kv_heads, head_size)
        self.kv_cache: Tensor | None = None
        self.store_kvcache = StoreKVCache()
        self.flash_attn_decode = FlashAttnDecode(num_heads, head_size, scale, self.num_kv_heads)

    def forward(self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None) -> Tensor:
        for name, x, size in (
            ("query", query, self.query_size),
            ("key", key, self.kv_size),
            ("value", value, self.kv_size),
        ):
            if x is not None and x.shape[-1] != size:
                raise ValueError(f"CrossAttention takes rows of {size} of {name}, got {tuple(x.shape)}.")
        context = forward_context()
        if context.cross_block_table is None or context.cross_seq_lens is None:
            return query.new_zeros(query.shape)
        if self.kv_cache is None:
            raise UnsupportedError("CrossAttention has no kv_cache bound, and its sequences' states lie in one.")
        key_cache, value_cache = self.kv_cache.unbind(0)
        if key is not None and value is not None:
            self._store(context, key, value, key_cache, value_cache)
        q = query.unflatten(-1, (self.num_heads, self.head_size))
        lens, table = _of_tokens(context, len(q), context.cross_seq_lens, context.cross_block_table)
        most = table.shape[1] * key_cache.shape[1]
        return self.flash_attn_decode(q, key_cache, value_cache, lens, table, most).flatten(-2)

    def _store(
        self, context: ForwardContext, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor
    ) -> None:
        if context.cross_slot_mapping is None:
            raise UnsupportedError("Encoder states came with a step whose context has no cross_slot_mapping for them.")
        heads = (self.num_kv_heads, self.head_size)
        k, v = key.unflatten(-1, heads), value.unflatten(-1, heads)
        self.store_kvcache(k, v, key_cache, value_cache, context.cross_slot_mapping)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return drawn_encoder_tokens(sizes)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """Arguments and result once; within a forward context also the states that are stored and those read."""
        num_bytes = super().cost(inputs, outputs).num_bytes
        context = forward_context_or_none()
        if context is None or context.cross_seq_lens is None:
            return Cost(num_bytes)
        element_size = next(t for t in inputs.values() if isinstance(t, Tensor)).element_size()
        num_rows = int(context.cross_seq_lens.sum())
        if inputs.get("key") is not None and context.cross_slot_mapping is not None:
            num_rows += len(context.cross_slot_mapping)
        pairs = int((context.query_start_loc.diff() * context.cross_seq_lens).sum())
        return Cost(num_bytes + 2 * num_rows * self.kv_size * element_size, 4 * pairs * self.query_size)


def drawn_encoder_tokens(sizes: Mapping[str, int]) -> dict[str, int]:
    """In a drawn batch the states that are stored lie where its new tokens do: as many of the one as of the other."""
    return {"num_encoder_tokens": sizes["num_tokens"]} if "num_tokens" in sizes else {}


def _of_tokens(context: ForwardContext, num_tokens: int, lens: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Length and pages of the states that each token sees: those of its sequence; of padding, the last one's."""
    if context.phase is Phase.DECODE:
        return lens, table
    rows = torch.arange(num_tokens, dtype=torch.int32, device=lens.device)
    sequence = torch.searchsorted(context.query_start_loc[1:], rows, right=True).clamp(max=len(lens) - 1)
    return lens[sequence], table[sequence]
