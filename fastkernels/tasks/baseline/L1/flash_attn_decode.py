"""Attention of one new token per sequence over the pages of the cache."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.context import is_reference_asked
from fastkernels.kernels.flash_attn_decode import flash_attn_decode
from fastkernels.kernels.paged_cpu import decode_paged_kv, is_compiling
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec, scalar
from fastkernels.tasks.baseline.paged_attention import (
    BLOCK_TABLE,
    CACHE,
    EXAMPLES,
    SEQ_LENS,
    batched_decode_attention,
    causal_attention,
    check_head_counts,
    check_tail,
    gather_pages,
    paged_bytes,
)

_SEQ_HEADS = TensorSpec(("num_seqs", "num_heads", "head_size"))


class FlashAttnDecode(Op):
    """out[i] = softmax(scale * query[i] @ keys.T) @ values over the seq_lens[i] cached tokens of sequence i.

    Token j of sequence i lies in page block_table[i, j // page_size] at j % page_size; the query's own is cached.

    Shapes:  query, out: [num_seqs, num_heads, head_size]; key_cache, value_cache: [num_pages, page_size,
             num_kv_heads, head_size]; seq_lens: [num_seqs]; block_table: [num_seqs, max_pages], entries behind
             the sequence's end never read; max_seq_len: the longest. A sequence of length 0 gives zeros.
    Dtypes:  bf16, fp16 or fp32; scores, softmax and sums in fp32; seq_lens and block_table int32.
    Returns: out. No argument is written to.
    Errors:  ValueError when heads or head_size are not those of the op, or the rows are not one a sequence.
    Source:  Kwon et al. 2023 (https://arxiv.org/abs/2309.06180); as flash_attn_with_kvcache with a block table.
    """

    spec = OpSpec(
        inputs={
            "query": _SEQ_HEADS.strided(),
            "key_cache": CACHE,
            "value_cache": CACHE,
            "seq_lens": SEQ_LENS,
            "block_table": BLOCK_TABLE,
            "max_seq_len": scalar(Role.MAX_SEQ_LEN),
        },
        outputs={"out": _SEQ_HEADS},
        examples=EXAMPLES,
    )

    def __init__(self, num_heads: int, head_size: int, scale: float, num_kv_heads: int) -> None:
        super().__init__()
        check_head_counts(num_heads, num_kv_heads)
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = scale
        self.num_kv_heads = num_kv_heads

    def forward(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        seq_lens: Tensor,
        block_table: Tensor,
        max_seq_len: int,
    ) -> Tensor:
        check_tail("query", query, self.num_heads, self.head_size)
        check_tail("key_cache", key_cache, self.num_kv_heads, self.head_size)
        check_tail("value_cache", value_cache, self.num_kv_heads, self.head_size)
        if not query.shape[0] == seq_lens.shape[0] == block_table.shape[0]:
            raise ValueError(
                f"FlashAttnDecode takes one query a sequence, got {len(query)} queries, {len(seq_lens)} lengths "
                f"and {len(block_table)} rows of block_table."
            )
        if is_reference_asked():
            return self.reference(query, key_cache, value_cache, seq_lens, block_table, max_seq_len)
        if is_compiling():
            return decode_paged_kv(query, key_cache, value_cache, seq_lens, block_table, self.scale)
        if not query.is_cuda:
            arguments = (query, key_cache, value_cache, seq_lens, block_table, max_seq_len, self.scale)
            return batched_decode_attention(*arguments)
        return flash_attn_decode(query, key_cache, value_cache, seq_lens, block_table, max_seq_len, self.scale)

    def reference(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        seq_lens: Tensor,
        block_table: Tensor,
        max_seq_len: int,
    ) -> Tensor:
        out = query.new_zeros(query.shape)
        for i, seq_len in enumerate(seq_lens.tolist()):
            if seq_len:
                keys = gather_pages(key_cache, block_table[i], seq_len)
                values = gather_pages(value_cache, block_table[i], seq_len)
                out[i : i + 1] = causal_attention(query[i : i + 1], keys, values, self.scale)
        return out

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_keys = int(inputs["seq_lens"].long().sum())
        return Cost(paged_bytes(inputs, outputs), 4 * num_keys * self.num_heads * self.head_size)
