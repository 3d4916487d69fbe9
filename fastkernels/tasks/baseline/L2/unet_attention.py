"""Attention of image tokens to each other, and to the tokens of a text."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.distributed.tensor_parallel import shard_size, tp_size
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.dense_attention import DenseAttention
from fastkernels.tasks.baseline.L1.group_norm import GroupNorm
from fastkernels.tasks.baseline.L2.parallel_linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)


class UNetSelfAttention(Op):
    """y = to_out(DenseAttention(q, k, v)) with q, k, v = to_qkv(x); with groups x is normed first and added last.

    Shapes:  hidden_states, y: [batch, num_tokens, query_dim].
    Dtypes:  bf16, fp16 or fp32; norm, softmax and sums in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts; ValueError when heads do not split over the ranks.
    Source:  Rombach et al. 2021 (https://arxiv.org/abs/2112.10752); diffusers' Attention without encoder states, with
             norm_num_groups and residual_connection as the image decoder has it.
    """

    spec = OpSpec(
        inputs={"hidden_states": TensorSpec(("batch", "num_tokens", "query_dim"))},
        outputs={"y": TensorSpec(("batch", "num_tokens", "query_dim"))},
        examples=(
            {"query_dim": 24, "heads": 3, "dim_head": 8},
            {"query_dim": 18, "heads": 1, "dim_head": 18, "bias": True, "norm_num_groups": 3},
        ),
        example_axes={"batch": (2, 1), "num_tokens": (35, 6)},
    )

    def __init__(
        self,
        query_dim: int,
        heads: int,
        dim_head: int,
        bias: bool = False,
        norm_num_groups: int | None = None,
        eps: float = 1e-6,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.query_dim, self.dim_head = query_dim, dim_head
        self.num_heads = shard_size(heads, tp_size(), "The number of attention heads")
        self.group_norm = None if norm_num_groups is None else GroupNorm(norm_num_groups, query_dim, eps)
        self.to_qkv = QKVParallelLinear(query_dim, dim_head, heads, bias=bias, prefix=f"{prefix}.to_qkv")
        self.attn = DenseAttention(self.num_heads, dim_head)
        self.to_out = RowParallelLinear(heads * dim_head, query_dim, prefix=f"{prefix}.to_out")

    def forward(self, hidden_states: Tensor) -> Tensor:
        residual = hidden_states
        if self.group_norm is not None:
            hidden_states = self.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        qkv, _ = self.to_qkv(hidden_states)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.dim_head)).unbind(2)
        y, _ = self.to_out(self.attn(q, k, v).flatten(-2))
        return y if self.group_norm is None else y + residual

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        x = inputs["hidden_states"]
        num_rows, num_tokens = x.numel() // self.query_dim, x.shape[1]
        matrices = self.to_qkv.weight.numel() + self.to_out.weight.numel()
        flops = 2 * num_rows * matrices + 4 * num_rows * num_tokens * self.num_heads * self.dim_head
        return Cost(super().cost(inputs, outputs).num_bytes, flops)


class UNetCrossAttention(Op):
    """y = to_out(DenseAttention(to_q(x), k, v)) with k, v = to_kv(encoder_hidden_states).

    Shapes:  hidden_states, y: [batch, num_tokens, query_dim]; encoder_hidden_states: [batch, num_encoder_tokens,
             cross_attention_dim].
    Dtypes:  bf16, fp16 or fp32; softmax and sums in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts; ValueError when heads do not split over the ranks.
    Source:  Rombach et al. 2021 (https://arxiv.org/abs/2112.10752); diffusers' Attention with encoder states.
    """

    spec = OpSpec(
        inputs={
            "hidden_states": TensorSpec(("batch", "num_tokens", "query_dim")),
            "encoder_hidden_states": TensorSpec(("batch", "num_encoder_tokens", "cross_attention_dim")),
        },
        outputs={"y": TensorSpec(("batch", "num_tokens", "query_dim"))},
        examples=(
            {"query_dim": 24, "cross_attention_dim": 40, "heads": 3, "dim_head": 8},
            {"query_dim": 45, "cross_attention_dim": 33, "heads": 5, "dim_head": 9},
        ),
        example_axes={"batch": (2, 1), "num_tokens": (35, 6), "num_encoder_tokens": (13, 5)},
    )

    def __init__(self, query_dim: int, cross_attention_dim: int, heads: int, dim_head: int, prefix: str = "") -> None:
        super().__init__()
        self.query_dim, self.cross_attention_dim, self.dim_head = query_dim, cross_attention_dim, dim_head
        self.num_heads = shard_size(heads, tp_size(), "The number of attention heads")
        inner = heads * dim_head
        self.to_q = ColumnParallelLinear(query_dim, inner, bias=False, prefix=f"{prefix}.to_q")
        self.to_kv = MergedColumnParallelLinear(
            cross_attention_dim, [inner, inner], bias=False, prefix=f"{prefix}.to_kv"
        )
        self.attn = DenseAttention(self.num_heads, dim_head)
        self.to_out = RowParallelLinear(inner, query_dim, prefix=f"{prefix}.to_out")

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        q, _ = self.to_q(hidden_states)
        kv, _ = self.to_kv(encoder_hidden_states)
        k, v = kv.unflatten(-1, (2, self.num_heads, self.dim_head)).unbind(2)
        y, _ = self.to_out(self.attn(q.unflatten(-1, (self.num_heads, self.dim_head)), k, v).flatten(-2))
        return y

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_rows = inputs["hidden_states"].numel() // self.query_dim
        encoder = inputs["encoder_hidden_states"]
        flops = 2 * num_rows * (self.to_q.weight.numel() + self.to_out.weight.numel())
        flops += 2 * (encoder.numel() // encoder.shape[-1]) * self.to_kv.weight.numel()
        flops += 4 * num_rows * encoder.shape[1] * self.num_heads * self.dim_head
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
