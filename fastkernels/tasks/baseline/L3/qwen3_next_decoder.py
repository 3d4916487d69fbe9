"""One layer of Qwen3-Next."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.gemma_rms_norm import GemmaRMSNorm
from fastkernels.tasks.baseline.L2.llama_mlp import LlamaMLP
from fastkernels.tasks.baseline.L2.qwen3_next_attention import Qwen3NextAttention
from fastkernels.tasks.baseline.L2.qwen3_next_gdn_attention import Qwen3NextGDNAttention
from fastkernels.tasks.baseline.L2.qwen3_next_moe import Qwen3NextMoE
from fastkernels.tasks.baseline.state_slots import ROOM
from fastkernels.tasks.configs.qwen3_next import Qwen3NextConfig

_HIDDEN = TensorSpec(("num_tokens", "hidden_size"))
ALL_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 4}
"""Of examples: a near tie between experts is no error of a layer's."""


class Qwen3NextDecoderLayer(Op):
    """h = hidden_states + residual; h += mix(norm(h)); returns mlp(norm(h)) and h: the sum is left to the next.

    mix is linear attention (linear_attn) or full attention (self_attn), mlp a mixture of experts or dense, by layer.

    Shapes:  positions: [num_tokens]; hidden_states, residual and both results: [num_tokens, hidden_size].
    Dtypes:  bf16 or fp32; positions int64; norms, softmax and the delta rule in fp32.
    Returns: (hidden_states, residual); residual None starts the chain. Writes to the layer's kv_cache; no
             argument is written to.
    Errors:  those of its parts.
    Source:  Qwen3-Next (https://qwen.ai/blog?id=qwen3-next); forward as vLLM's Qwen3NextDecoderLayer.
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
            {"config": Qwen3NextConfig.tiny(**ALL_EXPERTS), "layer_idx": 0},
            {"config": Qwen3NextConfig.tiny(hidden_size=53, mlp_only_layers=(1,)), "layer_idx": 1},
        ),
        **ROOM,  # type: ignore[arg-type]
    )

    def __init__(self, config: Qwen3NextConfig, layer_idx: int, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.max_position_embeddings = config.max_position_embeddings
        self.is_full_attention = config.is_full_attention(layer_idx)
        if self.is_full_attention:
            self.self_attn = Qwen3NextAttention(config, quant_config, prefix=f"{prefix}.self_attn")
        else:
            self.linear_attn = Qwen3NextGDNAttention(config, quant_config, prefix=f"{prefix}.linear_attn")
        self.mlp = (
            Qwen3NextMoE(config, quant_config, prefix=f"{prefix}.mlp")
            if config.is_sparse(layer_idx)
            else LlamaMLP(
                config.hidden_size, config.intermediate_size, config.hidden_act, quant_config, prefix=f"{prefix}.mlp"
            )
        )
        self.input_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            residual = hidden_states
            hidden_states = self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        if self.is_full_attention:
            hidden_states = self.self_attn(positions, hidden_states)
        else:
            hidden_states = self.linear_attn(hidden_states)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """What the parts hand to each other need not leave the chip's caches."""
        x = inputs["hidden_states"]
        mix = self.self_attn if self.is_full_attention else self.linear_attn
        mixed, mlp = mix.cost({"hidden_states": x}, {}), self.mlp.cost({"hidden_states": x, "x": x[:0]}, {})
        norms = [*self.input_layernorm.parameters(), *self.post_attention_layernorm.parameters()]
        tensors = [*norms, *(t for t in (inputs.get("residual"), *outputs.values()) if t is not None)]
        own, flops = sum(t.numel() * t.element_size() for t in tensors), mixed.num_flops + mlp.num_flops
        twice = 2 * x.numel() * x.element_size() if isinstance(self.mlp, Qwen3NextMoE) else x.numel() * x.element_size()
        if isinstance(self.mlp, LlamaMLP):
            flops += 2 * len(x) * sum(p.numel() for p in self.mlp.parameters())
        return Cost(mixed.num_bytes + mlp.num_bytes - twice + own, flops)
