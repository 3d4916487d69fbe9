"""GPT-OSS's attention: sinks, and a window in every other layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.distributed.tensor_parallel import kv_head_shard, shard_size, tp_rank, tp_size
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.rotary_emb import RotaryEmbedding
from fastkernels.tasks.baseline.L2.attention import Attention
from fastkernels.tasks.baseline.L2.parallel_linear import QKVParallelLinear, RowParallelLinear
from fastkernels.tasks.configs.gpt_oss import GptOssConfig


class GptOssAttention(Op):
    """o_proj(Attention(rotate(q), rotate(k), v)) with q, k, v = qkv_proj(hidden_states), a sink a head.

    Shapes:  positions: [num_tokens]; hidden_states, output: [num_tokens, hidden_size].
    Dtypes:  bf16, fp16 or fp32; positions int64; softmax and sums in fp32.
    Returns: output. Writes to attn.kv_cache; no argument is written to.
    Errors:  those of its parts; ValueError when heads do not split over the ranks.
    Source:  OpenAI 2025 (https://arxiv.org/abs/2508.10925), sinks Xiao et al. 2023 (https://arxiv.org/abs/2309.17453);
             as GptOssAttention of transformers.
    """

    spec = OpSpec(
        inputs={
            "positions": TensorSpec(
                ("num_tokens",), dtype="int64", role=Role.POSITION, bound="max_position_embeddings"
            ),
            "hidden_states": TensorSpec(("num_tokens", "hidden_size")),
        },
        outputs={"output": TensorSpec(("num_tokens", "hidden_size"))},
        mutates=("kv_cache",),
        reads_context=True,
        examples=(
            {"config": GptOssConfig.tiny(), "layer": 0},
            {"config": GptOssConfig.tiny(hidden_size=52, num_attention_heads=3, num_key_value_heads=1), "layer": 1},
        ),
    )

    def __init__(self, config: GptOssConfig, layer: int, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        head_size, num_heads = config.head_size, config.num_attention_heads
        self.hidden_size = config.hidden_size
        self.head_size = head_size
        self.num_heads = shard_size(num_heads, tp_size(), "The number of attention heads")
        self.num_kv_heads = kv_head_shard(config.num_kv_heads, tp_rank(), tp_size())[1]
        self.max_position_embeddings = config.max_position_embeddings
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            head_size,
            num_heads,
            config.num_kv_heads,
            config.attention_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            num_heads * head_size,
            config.hidden_size,
            bias=config.attention_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.o_proj",
        )
        self.rotary_emb = RotaryEmbedding(
            head_size, head_size, config.max_position_embeddings, config.rope_theta, rope_scaling=config.rope_scaling
        )
        sizes = (self.num_heads, head_size, head_size**-0.5, self.num_kv_heads)
        window = config.window_of(layer)
        self.attn = Attention(*sizes, quant_config, prefix=f"{prefix}.attn", window=window, has_sinks=True)

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        qkv, _ = self.qkv_proj(hidden_states)
        heads = qkv.unflatten(-1, (-1, self.head_size))
        q, k, v = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=-2)
        q, k = self.rotary_emb(positions, q, k)
        output, _ = self.o_proj(self.attn(q.flatten(-2), k.flatten(-2), v.flatten(-2)))
        return output

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        hidden_states = inputs["hidden_states"]
        matrices = self.qkv_proj.weight.numel() + self.o_proj.weight.numel()
        own = super().cost(inputs, outputs)
        attn = self.attn.cost({"query": hidden_states[:0]}, {})
        return Cost(own.num_bytes + attn.num_bytes, attn.num_flops + 2 * len(hidden_states) * matrices)
