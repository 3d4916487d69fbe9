"""A layer of V-JEPA 2: attention and feed-forward block, each added to what came in."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L2.vision_mlp import VisionMLP
from fastkernels.tasks.baseline.L2.vjepa2_attention import VJEPA2Attention
from fastkernels.tasks.configs.vjepa2 import VJEPA2Config

_TOKENS = TensorSpec(("batch", "num_tokens", "hidden_size"))


class VJEPA2Layer(Op):
    """h = x + attention(norm1(x)); y = h + mlp(norm2(h)).

    Shapes:  hidden_states, y: [batch, num_tokens, hidden_size]; position_mask: [batch, num_tokens] int64, the number of
             each token's patch in the video, without it 0, 1, 2, ...
    Dtypes:  bf16, fp16 or fp32; norms and softmax in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Assran et al. 2025 (https://arxiv.org/abs/2506.09985); signature as transformers' VJEPA2Layer, without
             uses_rope as VJEPA2PoolerSelfAttentionLayer.
    """

    spec = OpSpec(
        inputs={
            "hidden_states": _TOKENS,
            "position_mask": TensorSpec(("batch", "num_tokens"), dtype="int64", role=Role.INDEX, bound="96").optional(),
        },
        outputs={"y": _TOKENS},
        examples=(
            {"config": VJEPA2Config.tiny(), "hidden_size": 36, "num_attention_heads": 2, "mlp_ratio": 2.5},
            {"config": VJEPA2Config.tiny(qkv_bias=False), "hidden_size": 48, "num_attention_heads": 3},
        ),
        example_axes={"batch": (2, 1), "num_tokens": (21, 40)},
    )

    def __init__(
        self,
        config: VJEPA2Config,
        hidden_size: int,
        num_attention_heads: int,
        mlp_ratio: float = 4.0,
        uses_rope: bool = True,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.norm1 = LayerNorm(hidden_size, config.layer_norm_eps)
        self.attention = VJEPA2Attention(
            config, hidden_size, num_attention_heads, uses_rope, prefix=f"{prefix}.attention"
        )
        self.norm2 = LayerNorm(hidden_size, config.layer_norm_eps)
        self.mlp = VisionMLP(hidden_size, int(hidden_size * mlp_ratio), config.hidden_act, prefix=f"{prefix}.mlp")

    def forward(self, hidden_states: Tensor, position_mask: Tensor | None = None) -> Tensor:
        attended = self.attention(self.norm1(hidden_states), position_mask)
        normed, hidden_states = self.norm2(attended, hidden_states)
        return hidden_states + self.mlp(normed)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        mlp = self.mlp.cost({"x": inputs["hidden_states"]}, {}).num_flops
        return Cost(super().cost(inputs, outputs).num_bytes, self.attention.cost(inputs, {}).num_flops + mlp)
