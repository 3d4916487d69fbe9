"""One layer of Whisper's encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L2.clip_attention import CLIPAttention
from fastkernels.tasks.baseline.L2.vision_mlp import VisionMLP

_STATES = TensorSpec(("batch", "num_tokens", "embed_dim"))
_MOST_HALF = torch.finfo(torch.float16).max - 1000


class WhisperEncoderLayer(Op):
    """h = x + self_attn(self_attn_layer_norm(x)); y = h + mlp(final_layer_norm(h)), in fp16 kept off infinity.

    Shapes:  x, y: [batch, num_tokens, embed_dim].
    Dtypes:  bf16, fp16 or fp32; norms, the activation and softmax in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Radford et al. 2022 (https://arxiv.org/abs/2212.04356); as WhisperEncoderLayer of transformers.
    """

    spec = OpSpec(
        inputs={"x": _STATES},
        outputs={"y": _STATES},
        examples=(
            {"embed_dim": 32, "num_heads": 4, "ffn_dim": 80},
            {"embed_dim": 51, "num_heads": 3, "ffn_dim": 67},
        ),
        example_axes={"batch": (2, 1), "num_tokens": (19, 4)},
    )

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, prefix: str = "") -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.self_attn_layer_norm = LayerNorm(embed_dim)
        self.self_attn = CLIPAttention(embed_dim, num_heads, prefix=f"{prefix}.self_attn")
        self.final_layer_norm = LayerNorm(embed_dim)
        self.mlp = VisionMLP(embed_dim, ffn_dim, prefix=f"{prefix}.mlp")

    def forward(self, x: Tensor) -> Tensor:
        normed, x = self.final_layer_norm(self.self_attn(self.self_attn_layer_norm(x)), x)
        x = x + self.mlp(normed)
        return x.clamp(-_MOST_HALF, _MOST_HALF) if x.dtype is torch.float16 else x

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        x = inputs["x"]
        attention = self.self_attn.cost({"hidden_states": x}, {})
        return Cost(
            super().cost(inputs, outputs).num_bytes, attention.num_flops + self.mlp.cost({"x": x}, {}).num_flops
        )
