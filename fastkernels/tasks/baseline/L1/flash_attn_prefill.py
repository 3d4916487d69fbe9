"""Attention of sequences that start in this batch, causal or not: nothing of them is cached."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor

from fastkernels.context import is_reference_asked
from fastkernels.kernels.flash_attn_prefill import flash_attn_prefill
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, scalar
from fastkernels.tasks.baseline.paged_attention import (
    EXAMPLES,
    QUERY_START_LOC,
    TOKEN_HEADS,
    TOKEN_KV_HEADS,
    batched_prefill_attention,
    causal_attention,
    check_head_counts,
    check_tail,
    num_visible_keys,
)


class FlashAttnPrefill(Op):
    """out = softmax(scale * query @ key.T, causal) @ value within each sequence, heads shared in groups.

    is_causal False: every token sees all of its sequence, as in encoders.

    Shapes:  query, out: [num_tokens, num_heads, head_size]; key, value: [num_tokens, num_kv_heads, head_size];
             query_start_loc: [num_seqs + 1], sequence i is rows query_start_loc[i] to query_start_loc[i + 1];
             max_query_len: the longest. Rows after the last sequence are undefined.
    Dtypes:  bf16, fp16 or fp32; scores, softmax and sums in fp32; query_start_loc int32.
    Returns: out. No argument is written to.
    Errors:  ValueError when heads or head_size are not those of the op.
    Source:  Dao 2023 (https://arxiv.org/abs/2307.08691); as flash_attn_varlen_func, causal unless told otherwise.
    """

    spec = OpSpec(
        inputs={
            "query": TOKEN_HEADS.strided(),
            "key": TOKEN_KV_HEADS.strided(),
            "value": TOKEN_KV_HEADS.strided(),
            "query_start_loc": QUERY_START_LOC,
            "max_query_len": scalar(Role.MAX_QUERY_LEN),
        },
        outputs={"out": TOKEN_HEADS},
        examples=(
            *EXAMPLES,
            {"num_heads": 3, "head_size": 72, "scale": 72**-0.5, "num_kv_heads": 3, "is_causal": False},
        ),
    )

    def __init__(self, num_heads: int, head_size: int, scale: float, num_kv_heads: int, is_causal: bool = True) -> None:
        super().__init__()
        check_head_counts(num_heads, num_kv_heads)
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = scale
        self.num_kv_heads = num_kv_heads
        self.is_causal = is_causal

    def forward(self, query: Tensor, key: Tensor, value: Tensor, query_start_loc: Tensor, max_query_len: int) -> Tensor:
        check_tail("query", query, self.num_heads, self.head_size)
        check_tail("key", key, self.num_kv_heads, self.head_size)
        check_tail("value", value, self.num_kv_heads, self.head_size)
        if is_reference_asked():
            return self.reference(query, key, value, query_start_loc, max_query_len)
        if not query.is_cuda:
            starts = query_start_loc.tolist()
            return batched_prefill_attention(query, key, value, starts, self.scale, self.is_causal)
        return flash_attn_prefill(query, key, value, query_start_loc, max_query_len, self.scale, self.is_causal)

    def reference(
        self, query: Tensor, key: Tensor, value: Tensor, query_start_loc: Tensor, max_query_len: int
    ) -> Tensor:
        out = query.new_zeros(query.shape)
        starts = query_start_loc.tolist()
        for start, end in pairwise(starts):
            rows = slice(start, end)
            out[rows] = causal_attention(query[rows], key[rows], value[rows], self.scale, self.is_causal)
        return out

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        query_lens = inputs["query_start_loc"].diff()
        pairs = num_visible_keys(query_lens, query_lens)
        if not self.is_causal:
            pairs = int(query_lens.long().square().sum())
        return Cost(super().cost(inputs, outputs).num_bytes, 4 * pairs * self.num_heads * self.head_size)
