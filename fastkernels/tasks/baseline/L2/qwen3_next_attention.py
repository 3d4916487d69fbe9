"""Qwen3-Next's full attention: normed heads, partly rotated, and a gate on what comes out."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.distributed.tensor_parallel import kv_head_shard, shard_size, tp_rank, tp_size
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.gemma_rms_norm import GemmaRMSNorm
from fastkernels.tasks.baseline.L1.rotary_emb import RotaryEmbedding
from fastkernels.tasks.baseline.L1.sigmoid_mul import SigmoidMul
from fastkernels.tasks.baseline.L2.attention import Attention
from fastkernels.tasks.baseline.L2.parallel_linear import QKVParallelLinear, RowParallelLinear
from fastkernels.tasks.baseline.state_slots import ROOM
from fastkernels.tasks.configs.qwen3_next import Qwen3NextConfig

_HIDDEN = TensorSpec(("num_tokens", "hidden_size"))


class Qwen3NextAttention(Op):
    """o_proj(Attention(rotate(norm(q)), rotate(norm(k)), v) * sigmoid(gate)) with q, gate, k, v = qkv_proj(hidden).

    Shapes:  positions: [num_tokens]; hidden_states, output: [num_tokens, hidden_size]. Rows of qkv_proj: of each head
             its query, then its gate; all keys; all values.
    Dtypes:  bf16 or fp32; positions int64; norms, softmax and sums in fp32.
    Returns: output. Writes to attn.kv_cache; no argument is written to.
    Errors:  those of its parts; ValueError when heads do not split over the ranks.
    Source:  Qiu et al. 2025 (https://arxiv.org/abs/2505.06708); signature as vLLM's Qwen3NextAttention.
    """

    spec = OpSpec(
        inputs={
            "positions": TensorSpec(
                ("num_tokens",), dtype="int64", role=Role.POSITION, bound="max_position_embeddings"
            ),
            "hidden_states": _HIDDEN,
        },
        outputs={"output": _HIDDEN},
        mutates=("kv_cache",),
        reads_context=True,
        examples=(
            {"config": Qwen3NextConfig.tiny()},
            {
                "config": Qwen3NextConfig.tiny(
                    hidden_size=53,
                    num_attention_heads=3,
                    num_key_value_heads=1,
                    head_dim=80,
                    partial_rotary_factor=0.6,
                    attention_bias=True,
                )
            },
        ),
        **ROOM,  # type: ignore[arg-type]
    )

    def __init__(self, config: Qwen3NextConfig, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        heads, kv_heads, bias = config.num_attention_heads, config.num_key_value_heads, config.attention_bias
        self.hidden_size = config.hidden_size
        self.head_size = config.head_dim
        self.num_heads = shard_size(heads, tp_size(), "The number of attention heads")
        self.num_kv_heads = kv_head_shard(kv_heads, tp_rank(), tp_size())[1]
        self.max_position_embeddings = config.max_position_embeddings
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            self.head_size,
            2 * heads,
            kv_heads,
            bias,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            heads * self.head_size, config.hidden_size, bias, quant_config=quant_config, prefix=f"{prefix}.o_proj"
        )
        self.q_norm = GemmaRMSNorm(self.head_size, config.rms_norm_eps)
        self.k_norm = GemmaRMSNorm(self.head_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(
            self.head_size,
            config.rotary_dim,
            config.max_position_embeddings,
            config.rope_theta,
            rope_scaling=config.rope_scaling,
        )
        scale = self.head_size**-0.5
        self.attn = Attention(
            self.num_heads, self.head_size, scale, self.num_kv_heads, quant_config, prefix=f"{prefix}.attn"
        )
        self.gate = SigmoidMul(self.head_size)

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        qkv, _ = self.qkv_proj(hidden_states)
        heads = qkv.unflatten(-1, (-1, self.head_size))
        query_gate, k, v = heads.split([2 * self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=-2)
        q, gate = query_gate[:, 0::2], query_gate[:, 1::2]
        q, k = self.rotary_emb(positions, self.q_norm(q), self.k_norm(k))
        mixed = self.attn(q.flatten(-2), k.flatten(-2), v.flatten(-2))
        output, _ = self.o_proj(self.gate(mixed.unflatten(-1, (-1, self.head_size)), gate).flatten(-2))
        return output

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        hidden_states = inputs["hidden_states"]
        matrices = self.qkv_proj.weight.numel() + self.o_proj.weight.numel()
        own, attn = super().cost(inputs, outputs), self.attn.cost({"query": hidden_states[:0]}, {})
        return Cost(own.num_bytes + attn.num_bytes, attn.num_flops + 2 * len(hidden_states) * matrices)
