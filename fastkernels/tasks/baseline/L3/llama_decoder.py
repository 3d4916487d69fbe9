"""One layer of Llama."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.rms_norm import RMSNorm
from fastkernels.tasks.baseline.L2.attention import LlamaAttention
from fastkernels.tasks.baseline.L2.llama_mlp import LlamaMLP
from fastkernels.tasks.configs.llama import LlamaConfig

_HIDDEN = TensorSpec(("num_tokens", "hidden_size"))


class LlamaDecoderLayer(Op):
    """h = hidden_states + residual; h += self_attn(norm(h)); returns mlp(norm(h)) and h: the sum is left to the next.

    Shapes:  positions: [num_tokens], or [3, num_tokens] with mrope_section; hidden_states, residual and both results:
             [num_tokens, hidden_size].
    Dtypes:  bf16, fp16 or fp32; positions int64; norms and softmax in fp32.
    Returns: (hidden_states, residual); residual None starts the chain. Writes to the layer's kv_cache; no
             argument is written to.
    Errors:  those of its parts.
    Source:  Touvron et al. 2023 (https://arxiv.org/abs/2302.13971); forward as vLLM's LlamaDecoderLayer.
    """

    spec = OpSpec(
        inputs={
            "positions": TensorSpec(
                ("num_tokens",), dtype="int64", role=Role.POSITION, bound="max_position_embeddings"
            ),
            "hidden_states": _HIDDEN,
            "residual": _HIDDEN.optional(),
        },
        outputs={"hidden_states_out": _HIDDEN, "residual_out": _HIDDEN},
        mutates=("kv_cache",),
        reads_context=True,
        examples=(
            {"config": LlamaConfig.tiny()},
            {
                "config": LlamaConfig.tiny(
                    hidden_size=52,
                    intermediate_size=89,
                    num_attention_heads=3,
                    num_key_value_heads=1,
                    head_dim=80,
                    attention_bias=True,
                    mlp_bias=True,
                )
            },
        ),
    )

    def __init__(self, config: LlamaConfig, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.max_position_embeddings = config.max_position_embeddings
        self.self_attn = LlamaAttention(
            config,
            config.hidden_size,
            config.num_attention_heads,
            config.num_kv_heads,
            config.max_position_embeddings,
            quant_config,
            bias=config.attention_bias,
            bias_o_proj=config.attention_out_bias,
            prefix=f"{prefix}.self_attn",
        )
        self.mlp = LlamaMLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            quant_config,
            bias=config.mlp_bias,
            prefix=f"{prefix}.mlp",
        )
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            residual = hidden_states
            hidden_states = self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(positions, hidden_states)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        nothing = inputs["hidden_states"][:0]
        attn = self.self_attn.attn.cost({"query": nothing}, {})
        matrices = sum(p.numel() for p in self.parameters() if p.dim() == 2)
        flops = attn.num_flops + 2 * len(inputs["hidden_states"]) * matrices
        return Cost(super().cost(inputs, outputs).num_bytes + attn.num_bytes, flops)
