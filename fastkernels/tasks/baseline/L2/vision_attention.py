"""Attention of a vision tower over patches of several pictures, without a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastkernels.distributed.tensor_parallel import shard_size, tp_size
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec, scalar
from fastkernels.tasks.baseline.L1.flash_attn_prefill import FlashAttnPrefill
from fastkernels.tasks.baseline.L1.vision_rotary_emb import VisionRotaryEmbedding
from fastkernels.tasks.baseline.L2.parallel_linear import QKVParallelLinear, RowParallelLinear
from fastkernels.tasks.baseline.paged_attention import QUERY_START_LOC

PATCHES = TensorSpec(("num_tokens", "hidden_size"))
PLACES = TensorSpec(("2", "num_tokens"), dtype="int64", role=Role.INDEX, bound="max_position_embeddings")


class VisionAttention(Op):
    """proj(attention(rotate(q), rotate(k), v)) with q, k, v = qkv(x), each patch over all of its own frame.

    Shapes:  x, output: [num_tokens, hidden_size]; positions: [2, num_tokens], row and column of each patch;
             query_start_loc: [num_frames + 1], the first patch of each frame; max_query_len: of the largest frame.
    Dtypes:  bf16, fp16 or fp32; positions int64, query_start_loc int32; softmax and sums in fp32.
    Returns: output. No argument is written to.
    Errors:  those of its parts; ValueError when heads do not split over the ranks.
    Source:  Wang et al. 2024 (https://arxiv.org/abs/2409.12191), section 2.1; as vLLM's Qwen2VisionAttention.
    """

    spec = OpSpec(
        inputs={
            "x": PATCHES,
            "positions": PLACES,
            "query_start_loc": QUERY_START_LOC,
            "max_query_len": scalar(Role.MAX_QUERY_LEN),
        },
        outputs={"output": PATCHES},
        examples=(
            {"hidden_size": 64, "num_heads": 4, "max_position_embeddings": 64},
            {"hidden_size": 60, "num_heads": 3, "max_position_embeddings": 97},
        ),
    )

    def __init__(
        self, hidden_size: int, num_heads: int, max_position_embeddings: int = 8192, bias: bool = True, prefix: str = ""
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.max_position_embeddings = max_position_embeddings
        self.head_size = hidden_size // num_heads
        self.num_heads = shard_size(num_heads, tp_size(), "The number of attention heads")
        self.qkv = QKVParallelLinear(hidden_size, self.head_size, num_heads, bias=bias, prefix=f"{prefix}.qkv")
        self.rotary_emb = VisionRotaryEmbedding(self.head_size, max_position_embeddings)
        self.attn = FlashAttnPrefill(
            self.num_heads, self.head_size, self.head_size**-0.5, self.num_heads, is_causal=False
        )
        self.proj = RowParallelLinear(num_heads * self.head_size, hidden_size, bias, prefix=f"{prefix}.proj")

    def forward(self, x: Tensor, positions: Tensor, query_start_loc: Tensor, max_query_len: int) -> Tensor:
        qkv, _ = self.qkv(x)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.head_size)).unbind(1)
        q, k = self.rotary_emb(positions, q, k)
        output, _ = self.proj(self.attn(q, k, v, query_start_loc, max_query_len).flatten(-2))
        return output

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        lens = inputs["query_start_loc"].diff().long()
        pairs = int(torch.sum(lens * lens))
        matrices = self.qkv.weight.numel() + self.proj.weight.numel()
        flops = 2 * len(inputs["x"]) * matrices + 4 * pairs * self.num_heads * self.head_size
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
