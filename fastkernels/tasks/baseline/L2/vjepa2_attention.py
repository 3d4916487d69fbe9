"""Self-attention over the patches of a video, with a rotary embedding by frame, row and column."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.distributed.tensor_parallel import shard_size, tp_size
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.dense_attention import DenseAttention
from fastkernels.tasks.baseline.L1.vjepa2_rope import VJEPA2Rope
from fastkernels.tasks.baseline.L2.parallel_linear import QKVParallelLinear, RowParallelLinear
from fastkernels.tasks.configs.vjepa2 import VJEPA2Config

_TOKENS = TensorSpec(("batch", "num_tokens", "hidden_size"))


class VJEPA2Attention(Op):
    """proj(DenseAttention(rotate(q), rotate(k), v)) with q, k, v = qkv_proj(hidden_states).

    Shapes:  hidden_states, output: [batch, num_tokens, hidden_size]; position_mask: [batch, num_tokens] int64, the
             number of each token's patch in the video, without it 0, 1, 2, ...; not read without uses_rope.
    Dtypes:  bf16, fp16 or fp32; softmax and sums in fp32.
    Returns: output. No argument is written to.
    Errors:  those of its parts; ValueError when heads do not split over the ranks.
    Source:  Assran et al. 2025 (https://arxiv.org/abs/2506.09985); signature as transformers' VJEPA2RopeAttention,
             without uses_rope as VJEPA2PoolerSelfAttention.
    """

    spec = OpSpec(
        inputs={
            "hidden_states": _TOKENS,
            "position_mask": TensorSpec(("batch", "num_tokens"), dtype="int64", role=Role.INDEX, bound="96").optional(),
        },
        outputs={"output": _TOKENS},
        examples=(
            {"config": VJEPA2Config.tiny(), "hidden_size": 36, "num_attention_heads": 2},
            {
                "config": VJEPA2Config.tiny(qkv_bias=False),
                "hidden_size": 48,
                "num_attention_heads": 3,
                "uses_rope": False,
            },
        ),
        example_axes={"batch": (2, 1), "num_tokens": (21, 40)},
    )

    def __init__(
        self,
        config: VJEPA2Config,
        hidden_size: int,
        num_attention_heads: int,
        uses_rope: bool = True,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.head_size = hidden_size // num_attention_heads
        self.num_heads = shard_size(num_attention_heads, tp_size(), "The number of attention heads")
        has_bias = config.qkv_bias or not uses_rope
        self.qkv_proj = QKVParallelLinear(
            hidden_size, self.head_size, num_attention_heads, bias=has_bias, prefix=f"{prefix}.qkv_proj"
        )
        self.rope = VJEPA2Rope(self.head_size, config.grid_size) if uses_rope else None
        self.attn = DenseAttention(self.num_heads, self.head_size)
        self.proj = RowParallelLinear(hidden_size, hidden_size, prefix=f"{prefix}.proj")

    def forward(self, hidden_states: Tensor, position_mask: Tensor | None = None) -> Tensor:
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.head_size)).unbind(2)
        if self.rope is not None:
            q, k = self.rope(q, k, position_mask)
        output, _ = self.proj(self.attn(q, k, v).flatten(-2))
        return output

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        x = inputs["hidden_states"]
        num_rows, num_tokens = x.numel() // self.hidden_size, x.shape[1]
        matrices = self.qkv_proj.weight.numel() + self.proj.weight.numel()
        flops = 2 * num_rows * matrices + 4 * num_rows * num_tokens * self.num_heads * self.head_size
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
