"""One layer of GPT-OSS."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.rms_norm import RMSNorm
from fastkernels.tasks.baseline.L2.gpt_oss_attention import GptOssAttention
from fastkernels.tasks.baseline.L2.gpt_oss_moe import GptOssMoE
from fastkernels.tasks.configs.gpt_oss import GptOssConfig

_HIDDEN = TensorSpec(("num_tokens", "hidden_size"))


class GptOssDecoderLayer(Op):
    """h = hidden_states + residual; h += self_attn(norm(h)); returns moe(norm(h)) and h: the sum is left to the next.

    Shapes:  positions: [num_tokens]; hidden_states, residual and both results: [num_tokens, hidden_size].
    Dtypes:  bf16, fp16 or fp32; positions int64; norms, softmax and the experts' scores in fp32.
    Returns: (hidden_states, residual); residual None starts the chain. Writes to the layer's kv_cache; no
             argument is written to.
    Errors:  those of its parts.
    Source:  OpenAI 2025 (https://arxiv.org/abs/2508.10925); forward as vLLM's LlamaDecoderLayer.
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
            {"config": GptOssConfig.tiny(), "layer": 0},
            {"config": GptOssConfig.tiny(num_local_experts=3, quantization=None), "layer": 1},
        ),
    )

    def __init__(self, config: GptOssConfig, layer: int, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.max_position_embeddings = config.max_position_embeddings
        self.self_attn = GptOssAttention(config, layer, quant_config, prefix=f"{prefix}.self_attn")
        self.mlp = GptOssMoE(config, quant_config, prefix=f"{prefix}.mlp")
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
        moe = self.mlp.cost({"hidden_states": inputs["hidden_states"]}, {})
        attn = self.self_attn.cost({"hidden_states": inputs["hidden_states"]}, {})
        streams = [t for t in (*inputs.values(), *outputs.values()) if isinstance(t, Tensor)]
        norms = [self.input_layernorm.weight, self.post_attention_layernorm.weight]
        own = sum(t.numel() * t.element_size() for t in (*streams, *norms))
        inner = 3 * inputs["hidden_states"].numel() * inputs["hidden_states"].element_size()
        return Cost(own + moe.num_bytes + attn.num_bytes - inner, moe.num_flops + attn.num_flops)
