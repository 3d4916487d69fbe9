"""Attention of padded batches, without a cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastkernels.context import uses_reference
from fastkernels.kernels.dense_attention import dense_attention, supports
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec


class DenseAttention(Op):
    """out = softmax(scale * query @ key^T over the keys that take part) @ value, head by head.

    With a past the keys are [past_key, key] and the values [past_value, value].

    Shapes:  query: [batch, num_queries, num_heads, head_size]; key: [batch, num_keys, num_kv_heads, head_size]; value:
             [batch, num_keys, num_kv_heads, value_head_size]; out: [batch, num_queries, num_heads, value_head_size]; a
             head of key and value for num_heads / num_kv_heads heads of query; mask: [batch, num_queries, num_all]
             bool, True where a key takes part, without it all do; past_key, past_value: as key and value, of num_past,
             which may be 0; num_all = num_past + num_keys.
    Dtypes:  query, key and value alike, bf16, fp16 or fp32; scores, softmax and sums in fp32.
    Returns: out. No argument is written to.
    Errors:  ValueError when heads or head_size differ from those of __init__, when the mask is not of all keys, or when
             there is one of past_key and past_value.
    Source:  Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762); layout as flash-attn's flash_attn_func.
    """

    spec = OpSpec(
        inputs={
            "query": TensorSpec(("batch", "num_queries", "num_heads", "head_size")).strided(),
            "key": TensorSpec(("batch", "num_keys", "num_kv_heads", "head_size")).strided(),
            "value": TensorSpec(("batch", "num_keys", "num_kv_heads", "value_head_size")).strided(),
            "mask": TensorSpec(("batch", "num_queries", "num_all"), dtype="bool", role=Role.MASK).optional(),
            "past_key": TensorSpec(("batch", "num_past", "num_kv_heads", "head_size")).strided().optional(),
            "past_value": TensorSpec(("batch", "num_past", "num_kv_heads", "value_head_size")).strided().optional(),
        },
        outputs={"out": TensorSpec(("batch", "num_queries", "num_heads", "value_head_size"))},
        examples=(
            {"num_heads": 4, "head_size": 16},
            {"num_heads": 6, "head_size": 40, "scale": 0.125, "num_kv_heads": 2, "value_head_size": 24},
        ),
        example_axes={"batch": (2, 1), "num_queries": (33, 1), "num_keys": (50, 7, 1100), "num_past": (17, 96)},
        may_be_empty=("num_past",),
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

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        past_key: Tensor | None = None,
        past_value: Tensor | None = None,
    ) -> Tensor:
        self._check(query, key, value, mask, past_key, past_value)
        if past_key is not None and not past_key.shape[1]:
            past_key = past_value = None
        if uses_reference(query):
            return self.reference(query, key, value, mask, past_key, past_value)
        num_keys = key.shape[1] + _num_past(past_key)
        if self._has_kernel(query, mask, past_key) and supports(query, key, value, num_keys):
            return dense_attention(query, key, value, self.scale, mask, past_key, past_value)
        q, k, v = (t.transpose(1, 2) for t in (query, *_joined(key, value, past_key, past_value)))
        seen = None if mask is None else mask[:, None]
        is_grouped = self.num_heads != self.num_kv_heads
        out = scaled_dot_product_attention(q, k, v, seen, scale=self.scale, enable_gqa=is_grouped)
        return out.transpose(1, 2).contiguous()

    def _has_kernel(self, query: Tensor, mask: Tensor | None, past_key: Tensor | None) -> bool:
        """Where no fused one of torch's takes all of it; in float32 torch's matrix products are the faster ones."""
        is_grouped = self.num_heads != self.num_kv_heads and self.value_head_size != self.head_size
        return query.dtype != torch.float32 and (mask is not None or past_key is not None or is_grouped)

    def _check(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        past_key: Tensor | None,
        past_value: Tensor | None,
    ) -> None:
        heads, kv_heads = (self.num_heads, self.head_size), (self.num_kv_heads, self.head_size)
        value_heads = (self.num_kv_heads, self.value_head_size)
        keys, values = ([t for t in pair if t is not None] for pair in ((key, past_key), (value, past_value)))
        fits = query.shape[2:] == heads and all(t.shape[2:] == kv_heads for t in keys)
        if not fits or any(t.shape[2:] != value_heads for t in values):
            raise ValueError(
                f"DenseAttention takes {list(heads)} of query, {list(kv_heads)} of key and {list(value_heads)} of "
                f"value in the last axes, got {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
                + ("." if past_key is None else f", with a past of {tuple(past_key.shape)}.")
            )
        if [t.shape[1] for t in keys] != [t.shape[1] for t in values]:
            raise ValueError(
                f"DenseAttention has keys of lengths {[t.shape[1] for t in keys]} and values of "
                f"{[t.shape[1] for t in values]}."
            )
        pairs = (query.shape[1], sum(t.shape[1] for t in keys))
        if mask is not None and mask.shape[1:] != pairs:
            raise ValueError(f"DenseAttention takes a mask of {list(pairs)} in the last axes, got {list(mask.shape)}.")

    def reference(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        past_key: Tensor | None = None,
        past_value: Tensor | None = None,
    ) -> Tensor:
        dtype = compute_dtype(query)
        group = self.num_heads // self.num_kv_heads
        q = query.to(dtype)
        k, v = (t.to(dtype).repeat_interleave(group, dim=2) for t in _joined(key, value, past_key, past_value))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * self.scale
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).to(query.dtype).contiguous()

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_all": sizes["num_past"] + sizes["num_keys"]}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_bytes = super().cost(inputs, outputs).num_bytes
        num_pairs = inputs["query"][..., 0].numel() * (inputs["key"].shape[1] + _num_past(inputs.get("past_key")))
        return Cost(num_bytes, 2 * num_pairs * (self.head_size + self.value_head_size))


def _num_past(past_key: Tensor | None) -> int:
    return 0 if past_key is None else past_key.shape[1]


def _joined(key: Tensor, value: Tensor, past_key: Tensor | None, past_value: Tensor | None) -> tuple[Tensor, Tensor]:
    if past_key is None or past_value is None:
        return key, value
    return torch.cat([past_key, key], dim=1), torch.cat([past_value, value], dim=1)
