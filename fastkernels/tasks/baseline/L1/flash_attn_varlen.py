"""Causal attention of any mix of chunks and single tokens over the pages of the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.context import uses_reference
from fastkernels.kernels.flash_attn_varlen import flash_attn_varlen
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, scalar
from fastkernels.tasks.baseline.paged_attention import (
    BLOCK_TABLE,
    CACHE,
    EXAMPLES,
    QUERY_START_LOC,
    SEQ_LENS,
    TOKEN_HEADS,
    causal_attention,
    check_head_counts,
    check_tail,
    gather_pages,
    num_visible_keys,
    paged_bytes,
)
from fastkernels.tasks.baseline.window_attention import num_window_keys, window_attention


class FlashAttnVarlen(Op):
    """out = softmax(scale * query @ keys.T, causal) @ values, sequence by sequence over their cached tokens.

    The new tokens of a sequence are its last: query r of n sees keys up to seq_len - n + r, its own included.
    Token j of sequence i lies in page block_table[i, j // page_size] at j % page_size. With a window a query sees that
    many keys at most, its own the last; sinks, one a head, are scores of a key without a value.

    Shapes:  query, out: [num_tokens, num_heads, head_size]; key_cache, value_cache: [num_pages, page_size,
             num_kv_heads, head_size]; query_start_loc: [num_seqs + 1]; seq_lens: [num_seqs], new tokens included;
             block_table: [num_seqs, max_pages], entries behind a sequence's end or of pages before every window never
             read; sinks: [num_heads]; max_query_len,
             max_seq_len: the longest; num_decodes: at least so many sequences at the front have a single new
             token. Rows after the last sequence are undefined.
    Dtypes:  bf16, fp16 or fp32; scores, softmax and sums in fp32; integers int32.
    Returns: out. No argument is written to.
    Errors:  ValueError when heads, head_size or the number of sequences do not fit.
    Source:  Dao 2023 (https://arxiv.org/abs/2307.08691); as flash_attn_varlen_func with causal=True, block_table.
    """

    spec = OpSpec(
        inputs={
            "query": TOKEN_HEADS.strided(),
            "key_cache": CACHE,
            "value_cache": CACHE,
            "query_start_loc": QUERY_START_LOC,
            "seq_lens": SEQ_LENS,
            "block_table": BLOCK_TABLE,
            "max_query_len": scalar(Role.MAX_QUERY_LEN),
            "max_seq_len": scalar(Role.MAX_SEQ_LEN),
            "num_decodes": scalar(Role.NUM_DECODES),
        },
        outputs={"out": TOKEN_HEADS},
        examples=(
            *EXAMPLES,
            {"num_heads": 4, "head_size": 16, "scale": 0.25, "num_kv_heads": 2, "window": 9, "has_sinks": True},
        ),
    )

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        window: int | None = None,
        has_sinks: bool = False,
    ) -> None:
        super().__init__()
        check_head_counts(num_heads, num_kv_heads)
        if window is not None and window < 1:
            raise ValueError(f"A window holds at least the query's own key, got window {window}.")
        self.window = window
        self.sinks = nn.Parameter(torch.zeros(num_heads)) if has_sinks else None
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = scale
        self.num_kv_heads = num_kv_heads

    def forward(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        query_start_loc: Tensor,
        seq_lens: Tensor,
        block_table: Tensor,
        max_query_len: int,
        max_seq_len: int,
        num_decodes: int = 0,
    ) -> Tensor:
        check_tail("query", query, self.num_heads, self.head_size)
        check_tail("key_cache", key_cache, self.num_kv_heads, self.head_size)
        check_tail("value_cache", value_cache, self.num_kv_heads, self.head_size)
        if not len(query_start_loc) - 1 == len(seq_lens) == len(block_table):
            raise ValueError(
                f"FlashAttnVarlen: query_start_loc is of {len(query_start_loc) - 1} sequences, seq_lens of "
                f"{len(seq_lens)}, block_table of {len(block_table)}."
            )
        arguments = (query, key_cache, value_cache, query_start_loc, seq_lens, block_table, max_query_len, max_seq_len)
        if uses_reference(query):
            return self.reference(*arguments, num_decodes)
        return flash_attn_varlen(*arguments, self.scale, num_decodes, self.window, self.sinks)

    def reference(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        query_start_loc: Tensor,
        seq_lens: Tensor,
        block_table: Tensor,
        max_query_len: int,
        max_seq_len: int,
        num_decodes: int = 0,
    ) -> Tensor:
        out = query.new_zeros(query.shape)
        starts = query_start_loc.tolist()
        for i, seq_len in enumerate(seq_lens.tolist()):
            rows = slice(starts[i], starts[i + 1])
            first = self._first_page(starts[i + 1] - starts[i], seq_len, key_cache.shape[1])
            length = seq_len - first * key_cache.shape[1]
            keys = gather_pages(key_cache, block_table[i, first:], length)
            values = gather_pages(value_cache, block_table[i, first:], length)
            if self.window is None and self.sinks is None:
                out[rows] = causal_attention(query[rows], keys, values, self.scale)
            else:
                out[rows] = window_attention(query[rows], keys, values, self.scale, self.window, self.sinks)
        return out

    def _first_page(self, query_len: int, seq_len: int, page_size: int) -> int:
        """The first page of which any query sees a key."""
        return 0 if self.window is None else max(0, seq_len - query_len - self.window + 1) // page_size

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        query_lens, seq_lens = inputs["query_start_loc"].diff(), inputs["seq_lens"]
        pairs = num_visible_keys(query_lens, seq_lens)
        num_bytes = paged_bytes(inputs, outputs)
        if self.window is not None:
            pairs = num_window_keys(query_lens, seq_lens, self.window)
            unread = (seq_lens - query_lens - self.window + 1).clamp(min=0).long().sum()
            num_bytes -= 2 * int(unread) * self.num_kv_heads * self.head_size * inputs["key_cache"].element_size()
        return Cost(num_bytes, 4 * pairs * self.num_heads * self.head_size)
