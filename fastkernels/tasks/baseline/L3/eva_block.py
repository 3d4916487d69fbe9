"""A layer of DINOv3: attention and feed-forward block, each scaled and added to what came in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec, scalar
from fastkernels.tasks.baseline.L1.addcmul import Addcmul
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L2.eva_attention import EvaAttention
from fastkernels.tasks.baseline.L2.llama_mlp import LlamaMLP
from fastkernels.tasks.baseline.L2.vision_mlp import VisionMLP
from fastkernels.tasks.configs.dinov3 import DINOv3Config

_TOKENS = TensorSpec(("batch", "num_tokens", "hidden_size"))


class EvaBlock(Op):
    """h = x + lambda1 * attention(norm1(x)); y = h + lambda2 * mlp(norm2(h)).

    Shapes:  hidden_states, y: [batch, num_tokens, hidden_size]; height, width: patches a side.
    Dtypes:  bf16, fp16 or fp32; norms and softmax in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Simeoni et al. 2025 (https://arxiv.org/abs/2508.10104); the layer is timm's EvaBlock.
    """

    spec = OpSpec(
        inputs={"hidden_states": _TOKENS, "height": scalar(), "width": scalar()},
        outputs={"y": _TOKENS},
        examples=(
            {"config": DINOv3Config.tiny()},
            {
                "config": DINOv3Config.tiny(
                    hidden_size=60, num_attention_heads=3, hidden_act="gelu", use_gated_mlp=False
                )
            },
        ),
        example_axes={"batch": (2, 1), "height": (4, 1), "width": (3, 5)},
    )

    def __init__(self, config: DINOv3Config, prefix: str = "") -> None:
        super().__init__()
        self.num_prefix_tokens = config.num_prefix_tokens
        self.hidden_size = config.hidden_size
        sizes = (config.hidden_size, config.intermediate_size)
        mlp = LlamaMLP if config.use_gated_mlp else VisionMLP
        self.norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attention = EvaAttention(config, prefix=f"{prefix}.attention")
        self.lambda1 = nn.Parameter(torch.ones(config.hidden_size))
        self.norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = mlp(*sizes, config.hidden_act, bias=config.mlp_bias, prefix=f"{prefix}.mlp")
        self.lambda2 = nn.Parameter(torch.ones(config.hidden_size))
        self.addcmul = Addcmul()

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        attended = self.attention(self.norm1(hidden_states), height, width)
        normed, hidden_states = self.norm2(attended, hidden_states, self.lambda1)
        return self.addcmul(hidden_states, self.mlp(normed), self.lambda2)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return self.attention.derived_axes(sizes)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_rows = inputs["hidden_states"].numel() // self.hidden_size
        mlp = sum(p.numel() for p in self.mlp.parameters() if p.dim() == 2)
        flops = self.attention.cost(inputs, {}).num_flops + 2 * num_rows * mlp
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
