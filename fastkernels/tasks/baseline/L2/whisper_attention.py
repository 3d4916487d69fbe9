"""Attention of Whisper's decoder: to a text's own tokens, and to what was heard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastkernels.distributed.tensor_parallel import shard_size, tp_size
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L2.attention import Attention
from fastkernels.tasks.baseline.L2.cross_attention import CrossAttention, drawn_encoder_tokens
from fastkernels.tasks.baseline.L2.parallel_linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)

HIDDEN = TensorSpec(("num_tokens", "embed_dim"))
ENCODER_STATES = TensorSpec(("num_encoder_tokens", "embed_dim")).optional()
_EXAMPLES: tuple[dict[str, Any], ...] = ({"embed_dim": 32, "num_heads": 4}, {"embed_dim": 51, "num_heads": 3})


class WhisperAttention(Op):
    """out_proj(Attention(q, k, v)) with q, k, v = qkv_proj(hidden_states): causal, over the tokens in the cache.

    Shapes:  hidden_states, output: [num_tokens, embed_dim].
    Dtypes:  bf16, fp16 or fp32; softmax and sums in fp32.
    Returns: output. Writes to attn.kv_cache; no argument is written to.
    Errors:  those of its parts; ValueError when heads do not split over the ranks.
    Source:  Radford et al. 2022 (https://arxiv.org/abs/2212.04356); as vLLM's WhisperAttention of a decoder.
    """

    spec = OpSpec(
        inputs={"hidden_states": HIDDEN},
        outputs={"output": HIDDEN},
        mutates=("kv_cache",),
        reads_context=True,
        examples=_EXAMPLES,
    )

    def __init__(self, embed_dim: int, num_heads: int, bias: bool = True, prefix: str = "") -> None:
        super().__init__()
        self.embed_dim, head_size = embed_dim, embed_dim // num_heads
        self.num_heads = shard_size(num_heads, tp_size(), "The number of attention heads")
        self.qkv_proj = QKVParallelLinear(embed_dim, head_size, num_heads, bias=bias, prefix=f"{prefix}.qkv_proj")
        self.attn = Attention(self.num_heads, head_size, head_size**-0.5, prefix=f"{prefix}.attn")
        self.out_proj = RowParallelLinear(embed_dim, embed_dim, bias, prefix=f"{prefix}.out_proj")

    def forward(self, hidden_states: Tensor) -> Tensor:
        qkv, _ = self.qkv_proj(hidden_states)
        output, _ = self.out_proj(self.attn(*qkv.chunk(3, dim=-1)))
        return output

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        hidden_states = inputs["hidden_states"]
        attn = self.attn.cost({"query": hidden_states[:0]}, {})
        matrices = self.qkv_proj.weight.numel() + self.out_proj.weight.numel()
        num_bytes = super().cost(inputs, outputs).num_bytes + attn.num_bytes
        return Cost(num_bytes, attn.num_flops + 2 * len(hidden_states) * matrices)


class WhisperCrossAttention(Op):
    """out_proj(CrossAttention(q, k, v)) with q = q_proj(hidden_states) and k, v = kv_proj(encoder_hidden_states).

    Shapes:  hidden_states, output: [num_tokens, embed_dim]; encoder_hidden_states: [num_encoder_tokens, embed_dim], of
             the sequences that begin with this step; None when none does.
    Dtypes:  bf16, fp16 or fp32; softmax and sums in fp32.
    Returns: output. Writes to attn.kv_cache; no argument is written to.
    Errors:  those of its parts; ValueError when heads do not split over the ranks.
    Source:  Radford et al. 2022 (https://arxiv.org/abs/2212.04356); as vLLM's WhisperCrossAttention.
    """

    spec = OpSpec(
        inputs={"hidden_states": HIDDEN, "encoder_hidden_states": ENCODER_STATES},
        outputs={"output": HIDDEN},
        mutates=("kv_cache",),
        reads_context=True,
        examples=_EXAMPLES,
    )

    def __init__(self, embed_dim: int, num_heads: int, bias: bool = True, prefix: str = "") -> None:
        super().__init__()
        self.embed_dim, head_size = embed_dim, embed_dim // num_heads
        self.num_heads = shard_size(num_heads, tp_size(), "The number of attention heads")
        self.q_proj = ColumnParallelLinear(embed_dim, embed_dim, bias, prefix=f"{prefix}.q_proj")
        self.kv_proj = MergedColumnParallelLinear(embed_dim, [embed_dim] * 2, bias, prefix=f"{prefix}.kv_proj")
        self.attn = CrossAttention(self.num_heads, head_size, head_size**-0.5, prefix=f"{prefix}.attn")
        self.out_proj = RowParallelLinear(embed_dim, embed_dim, bias, prefix=f"{prefix}.out_proj")

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None) -> Tensor:
        query, _ = self.q_proj(hidden_states)
        key = value = None
        if encoder_hidden_states is not None:
            kv, _ = self.kv_proj(encoder_hidden_states)
            key, value = kv.chunk(2, dim=-1)
        output, _ = self.out_proj(self.attn(query, key, value))
        return output

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return drawn_encoder_tokens(sizes)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        hidden_states, states = inputs["hidden_states"], inputs.get("encoder_hidden_states")
        attn = self.attn.cost({"query": hidden_states[:0], "key": states}, {})
        given = 0 if states is None else states.numel() * states.element_size()
        matrices = len(hidden_states) * (self.q_proj.weight.numel() + self.out_proj.weight.numel())
        matrices += 0 if states is None else len(states) * self.kv_proj.weight.numel()
        num_bytes = super().cost(inputs, outputs).num_bytes + attn.num_bytes - given
        return Cost(num_bytes, attn.num_flops + 2 * matrices)
