"""A layer of CLIP and of SigLIP: attention and feed-forward block, each normed first and added."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L2.clip_attention import CLIPAttention
from fastkernels.tasks.baseline.L2.clip_mlp import CLIPMLP
from fastkernels.tasks.configs.pi0 import SiglipConfig
from fastkernels.tasks.configs.sdxl import CLIPTextConfig

_TOKENS = TensorSpec(("batch", "num_tokens", "hidden_size"))


class CLIPEncoderLayer(Op):
    """h = x + self_attn(layer_norm1(x)); y = h + mlp(layer_norm2(h)).

    Shapes:  hidden_states, y: [batch, num_tokens, hidden_size].
    Dtypes:  bf16, fp16 or fp32; norms and softmax in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Radford et al. 2021 (https://arxiv.org/abs/2103.00020); as CLIPEncoderLayer of transformers.
    """

    spec = OpSpec(
        inputs={"hidden_states": _TOKENS},
        outputs={"y": _TOKENS},
        examples=(
            {"config": CLIPTextConfig.tiny(), "is_causal": True},
            {"config": CLIPTextConfig.tiny(hidden_size=27, num_attention_heads=3, hidden_act="gelu")},
        ),
        example_axes={"batch": (2, 1), "num_tokens": (19, 4)},
    )

    def __init__(self, config: CLIPTextConfig | SiglipConfig, is_causal: bool = False, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = CLIPAttention(
            config.hidden_size, config.num_attention_heads, is_causal, prefix=f"{prefix}.self_attn"
        )
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = CLIPMLP(config.hidden_size, config.intermediate_size, config.hidden_act, prefix=f"{prefix}.mlp")

    def forward(self, hidden_states: Tensor) -> Tensor:
        attended = self.self_attn(self.layer_norm1(hidden_states))
        normed, hidden_states = self.layer_norm2(attended, hidden_states)
        return hidden_states + self.mlp(normed)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_rows = inputs["hidden_states"].numel() // self.hidden_size
        mlp = sum(p.numel() for p in self.mlp.parameters() if p.dim() == 2)
        flops = self.self_attn.cost(inputs, {}).num_flops + 2 * num_rows * mlp
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
