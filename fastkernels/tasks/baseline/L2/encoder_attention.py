"""Attention of a text encoder over packed texts, each token to all of its own, then the residual and the norm."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.distributed.tensor_parallel import shard_size, tp_size
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec, scalar
from fastkernels.tasks.baseline.L1.flash_attn_prefill import FlashAttnPrefill
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L2.parallel_linear import QKVParallelLinear, RowParallelLinear
from fastkernels.tasks.baseline.paged_attention import QUERY_START_LOC

PACKED = TensorSpec(("num_tokens", "hidden_size"))


class EncoderAttention(Op):
    """y = LayerNorm(x + dense(attention(q, k, v))) with q, k, v = qkv_proj(x), each token over all of its own text.

    Shapes:  x, y: [num_tokens, hidden_size], texts one behind another; query_start_loc: [num_seqs + 1], the first token
             of each; max_query_len: of the longest. Rows behind the last text are undefined.
    Dtypes:  bf16, fp16 or fp32; query_start_loc int32; softmax, sums and the norm in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts; ValueError when heads do not split over the ranks.
    Source:  Devlin et al. 2018 (https://arxiv.org/abs/1810.04805); as XLMRobertaAttention of transformers.
    """

    spec = OpSpec(
        inputs={
            "x": PACKED,
            "query_start_loc": QUERY_START_LOC,
            "max_query_len": scalar(Role.MAX_QUERY_LEN),
        },
        outputs={"y": PACKED},
        examples=({"hidden_size": 64, "num_heads": 4}, {"hidden_size": 51, "num_heads": 3}),
    )

    def __init__(self, hidden_size: int, num_heads: int, layer_norm_eps: float = 1e-5, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size, self.head_size = hidden_size, hidden_size // num_heads
        self.num_heads = shard_size(num_heads, tp_size(), "The number of attention heads")
        self.qkv_proj = QKVParallelLinear(hidden_size, self.head_size, num_heads, prefix=f"{prefix}.qkv_proj")
        sizes = (self.num_heads, self.head_size, self.head_size**-0.5, self.num_heads)
        self.attn = FlashAttnPrefill(*sizes, is_causal=False)
        self.dense = RowParallelLinear(hidden_size, hidden_size, prefix=f"{prefix}.dense")
        self.LayerNorm = LayerNorm(hidden_size, layer_norm_eps, returns_sum=False)

    def forward(self, x: Tensor, query_start_loc: Tensor, max_query_len: int) -> Tensor:
        qkv, _ = self.qkv_proj(x)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.head_size)).unbind(1)
        mixed, _ = self.dense(self.attn(q, k, v, query_start_loc, max_query_len).flatten(-2))
        return self.LayerNorm(mixed, x)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        pairs = int(inputs["query_start_loc"].diff().long().square().sum())
        matrices = self.qkv_proj.weight.numel() + self.dense.weight.numel()
        flops = 2 * len(inputs["x"]) * matrices + 4 * pairs * self.num_heads * self.head_size
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
