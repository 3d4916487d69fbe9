"""Self-attention over the patches of an image, with a rotary embedding by place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastkernels.distributed.tensor_parallel import shard_size, tp_size
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec, scalar
from fastkernels.tasks.baseline.L1.dense_attention import DenseAttention
from fastkernels.tasks.baseline.L1.dinov3_rope import DINOv3Rope
from fastkernels.tasks.baseline.L2.parallel_linear import QKVParallelLinear, RowParallelLinear
from fastkernels.tasks.configs.dinov3 import DINOv3Config

_TOKENS = TensorSpec(("batch", "num_tokens", "hidden_size"))


class EvaAttention(Op):
    """o_proj(DenseAttention(rotate(q), rotate(k), v)) with q, k, v = qkv_proj(hidden_states).

    Shapes:  hidden_states, output: [batch, num_tokens, hidden_size], the last height * width tokens are the patches;
             height, width: patches a side.
    Dtypes:  bf16, fp16 or fp32; softmax and sums in fp32.
    Returns: output. No argument is written to.
    Errors:  those of its parts; ValueError when heads do not split over the ranks.
    Source:  Simeoni et al. 2025 (https://arxiv.org/abs/2508.10104); the block is timm's EvaAttention.
    """

    spec = OpSpec(
        inputs={"hidden_states": _TOKENS, "height": scalar(), "width": scalar()},
        outputs={"output": _TOKENS},
        examples=(
            {"config": DINOv3Config.tiny()},
            {
                "config": DINOv3Config.tiny(
                    hidden_size=60, num_attention_heads=3, query_bias=True, num_register_tokens=0
                )
            },
        ),
        example_axes={"batch": (2, 1), "height": (4, 1), "width": (3, 5)},
    )

    def __init__(self, config: DINOv3Config, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.head_size = config.head_size
        self.num_heads = shard_size(config.num_attention_heads, tp_size(), "The number of attention heads")
        self.num_prefix_tokens = config.num_prefix_tokens
        has_bias = config.query_bias or config.key_bias or config.value_bias
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size, config.head_size, config.num_attention_heads, bias=has_bias, prefix=f"{prefix}.qkv_proj"
        )
        self.rope = DINOv3Rope(config.head_size, config.rope_theta, config.num_prefix_tokens)
        self.attn = DenseAttention(self.num_heads, config.head_size)
        self.o_proj = RowParallelLinear(
            config.hidden_size, config.hidden_size, config.proj_bias, prefix=f"{prefix}.o_proj"
        )

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.head_size)).unbind(2)
        q, k = self.rope(q, k, height, width)
        output, _ = self.o_proj(self.attn(q, k, v).flatten(-2))
        return output

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_tokens": self.num_prefix_tokens + sizes["height"] * sizes["width"]}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        x = inputs["hidden_states"]
        num_rows, num_tokens = x.numel() // self.hidden_size, x.shape[1]
        matrices = self.qkv_proj.weight.numel() + self.o_proj.weight.numel()
        flops = 2 * num_rows * matrices + 4 * num_rows * num_tokens * self.num_heads * self.head_size
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
