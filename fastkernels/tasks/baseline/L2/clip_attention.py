"""CLIP's attention: of a text, to what came before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastkernels.distributed.tensor_parallel import shard_size, tp_size
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.dense_attention import DenseAttention
from fastkernels.tasks.baseline.L2.parallel_linear import QKVParallelLinear, RowParallelLinear


class CLIPAttention(Op):
    """out_proj(DenseAttention(q, k, v)) with q, k, v = qkv_proj(hidden_states); when is_causal, to earlier tokens.

    Shapes:  hidden_states, output: [batch, num_tokens, embed_dim].
    Dtypes:  bf16, fp16 or fp32; softmax and sums in fp32.
    Returns: output. No argument is written to.
    Errors:  those of its parts; ValueError when heads do not split over the ranks.
    Source:  Radford et al. 2021 (https://arxiv.org/abs/2103.00020); as CLIPAttention of transformers.
    """

    spec = OpSpec(
        inputs={"hidden_states": TensorSpec(("batch", "num_tokens", "embed_dim"))},
        outputs={"output": TensorSpec(("batch", "num_tokens", "embed_dim"))},
        examples=(
            {"embed_dim": 32, "num_heads": 4, "is_causal": True},
            {"embed_dim": 15, "num_heads": 3, "is_causal": False},
        ),
        example_axes={"batch": (2, 1), "num_tokens": (19, 4)},
    )

    def __init__(self, embed_dim: int, num_heads: int, is_causal: bool = False, prefix: str = "") -> None:
        super().__init__()
        self.embed_dim, self.head_dim, self.is_causal = embed_dim, embed_dim // num_heads, is_causal
        self.num_heads = shard_size(num_heads, tp_size(), "The number of attention heads")
        self.qkv_proj = QKVParallelLinear(embed_dim, self.head_dim, num_heads, prefix=f"{prefix}.qkv_proj")
        self.attn = DenseAttention(self.num_heads, self.head_dim)
        self.out_proj = RowParallelLinear(embed_dim, embed_dim, prefix=f"{prefix}.out_proj")

    def forward(self, hidden_states: Tensor) -> Tensor:
        num_texts, num_tokens, _ = hidden_states.shape
        mask = None
        if self.is_causal:
            shape = (num_texts, num_tokens, num_tokens)
            mask = torch.ones(shape, dtype=torch.bool, device=hidden_states.device).tril()
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(2)
        output, _ = self.out_proj(self.attn(q, k, v, mask).flatten(-2))
        return output

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        x = inputs["hidden_states"]
        num_rows, num_tokens = x.numel() // self.embed_dim, x.shape[1]
        matrices = self.qkv_proj.weight.numel() + self.out_proj.weight.numel()
        flops = 2 * num_rows * matrices + 4 * num_rows * num_tokens * self.num_heads * self.head_dim
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
