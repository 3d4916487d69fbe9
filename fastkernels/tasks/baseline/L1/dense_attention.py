"""Attention of padded batches, without a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastkernels.context import uses_reference
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec


class DenseAttention(Op):
    """out = softmax(scale * query @ key^T over the keys that take part) @ value, head by head.

    Shapes:  query: [batch, num_queries, num_heads, head_size]; key: [batch, num_keys, num_kv_heads, head_size]; value:
             [batch, num_keys, num_kv_heads, value_head_size]; out: [batch, num_queries, num_heads, value_head_size]; a
             head of key and value for num_heads / num_kv_heads heads of query; mask: [batch, num_queries, num_keys]
             bool, True where a key takes part, without it all do.
    Dtypes:  query, key and value alike, bf16, fp16 or fp32; scores, softmax and sums in fp32.
    Returns: out. No argument is written to.
    Errors:  ValueError when heads or head_size differ from those of __init__.
    Source:  Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762); layout as flash-attn's flash_attn_func.
    """

    spec = OpSpec(
        inputs={
            "query": TensorSpec(("batch", "num_queries", "num_heads", "head_size")).strided(),
            "key": TensorSpec(("batch", "num_keys", "num_kv_heads", "head_size")).strided(),
            "value": TensorSpec(("batch", "num_keys", "num_kv_heads", "value_head_size")).strided(),
            "mask": TensorSpec(("batch", "num_queries", "num_keys"), dtype="bool", role=Role.MASK).optional(),
        },
        outputs={"out": TensorSpec(("batch", "num_queries", "num_heads", "value_head_size"))},
        examples=(
            {"num_heads": 4, "head_size": 16},
            {"num_heads": 6, "head_size": 40, "scale": 0.125, "num_kv_heads": 2, "value_head_size": 24},
        ),
        example_axes={"batch": (2, 1), "num_queries": (33, 1), "num_keys": (50, 7, 1100)},
    )

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float | None = None,
        num_kv_heads: int | None = None,
        value_head_size: int | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = head_size**-0.5 if scale is None else scale
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.value_head_size = head_size if value_head_size is None else value_head_size

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        heads, kv_heads = (self.num_heads, self.head_size), (self.num_kv_heads, self.head_size)
        value_heads = (self.num_kv_heads, self.value_head_size)
        if query.shape[2:] != heads or key.shape[2:] != kv_heads or value.shape[2:] != value_heads:
            raise ValueError(
                f"DenseAttention takes {list(heads)} of query, {list(kv_heads)} of key and {list(value_heads)} of "
                f"value in the last axes, got {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}."
            )
        if uses_reference(query):
            return self.reference(query, key, value, mask)
        q, k, v = (t.transpose(1, 2) for t in (query, key, value))
        seen = None if mask is None else mask[:, None]
        is_grouped = self.num_heads != self.num_kv_heads
        out = scaled_dot_product_attention(q, k, v, seen, scale=self.scale, enable_gqa=is_grouped)
        return out.transpose(1, 2).contiguous()

    def reference(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        dtype = compute_dtype(query)
        group = self.num_heads // self.num_kv_heads
        q = query.to(dtype)
        k, v = (t.to(dtype).repeat_interleave(group, dim=2) for t in (key, value))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * self.scale
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).to(query.dtype).contiguous()

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_bytes = super().cost(inputs, outputs).num_bytes
        num_pairs = inputs["query"][..., 0].numel() * inputs["key"].shape[1]
        return Cost(num_bytes, 2 * num_pairs * (self.head_size + self.value_head_size))
