"""A layer of Pi0's two transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec
from fastkernels.tasks.baseline.L1.gemma_rms_norm import GemmaRMSNorm
from fastkernels.tasks.baseline.L2.gemma_mlp import GemmaMLP
from fastkernels.tasks.baseline.L2.pi0_attention import EXAMPLE_AXES, INPUTS, OUTPUTS, TOKENS, PI0Attention
from fastkernels.tasks.configs.pi0 import GemmaConfig


class PI0DecoderLayer(Op):
    """h = hidden_states + residual; h += self_attn(norm(h)); returns mlp(norm(h)) and h: the sum is left to the next.

    Shapes:  as PI0Attention; residual and both results as hidden_states.
    Dtypes:  bf16, fp16 or fp32; positions int64; norms, angles, softmax and sums in fp32.
    Returns: (output, new residual, key, value), the new keys rotated; without a residual the chain starts. No argument
             is written to.
    Errors:  those of its parts.
    Source:  Black et al. 2024 (https://arxiv.org/abs/2410.24164); as GemmaDecoderLayer of transformers with a cache.
    """

    spec = OpSpec(
        inputs={**INPUTS, "residual": TOKENS.optional()},
        outputs={"output": TOKENS, "new_residual": TOKENS, "key": OUTPUTS["key"], "value": OUTPUTS["value"]},
        examples=(
            {"config": GemmaConfig.tiny()},
            {"config": GemmaConfig.tiny(hidden_size=27, num_attention_heads=6, num_key_value_heads=2, head_dim=6)},
        ),
        example_axes=EXAMPLE_AXES,
        may_be_empty=("num_past",),
    )

    def __init__(self, config: GemmaConfig, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size, self.head_dim = config.hidden_size, config.head_dim
        self.max_position_embeddings = config.max_position_embeddings
        self.input_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = PI0Attention(config, prefix=f"{prefix}.self_attn")
        self.num_kv_heads = self.self_attn.num_kv_heads
        self.post_attention_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GemmaMLP(config.hidden_size, config.intermediate_size, prefix=f"{prefix}.mlp")

    def forward(
        self,
        hidden_states: Tensor,
        positions: Tensor,
        mask: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if residual is None:
            residual, normed = hidden_states, self.input_layernorm(hidden_states)
        else:
            normed, residual = self.input_layernorm(hidden_states, residual)
        output, key, value = self.self_attn(normed, positions, mask, past_key, past_value)
        normed, residual = self.post_attention_layernorm(output, residual)
        return self.mlp(normed), residual, key, value

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return self.self_attn.derived_axes(sizes)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_rows = inputs["hidden_states"].numel() // self.hidden_size
        mlp = sum(p.numel() for p in self.mlp.parameters())
        flops = self.self_attn.cost(inputs, {}).num_flops + 2 * num_rows * mlp
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
