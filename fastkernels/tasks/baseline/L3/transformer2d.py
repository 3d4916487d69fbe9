"""Transformer layers over the pixels of a UNet's feature map."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.group_norm import GroupNorm
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L1.linear import Linear
from fastkernels.tasks.baseline.L2.geglu import FeedForward
from fastkernels.tasks.baseline.L2.unet_attention import UNetCrossAttention, UNetSelfAttention

_TOKENS = TensorSpec(("batch", "num_tokens", "dim"))
_ENCODED = TensorSpec(("batch", "num_encoder_tokens", "cross_attention_dim"))


class BasicTransformerBlock(Op):
    """h = x + attn1(norm1(x)); h = h + attn2(norm2(h), encoder_hidden_states); y = h + ff(norm3(h)).

    Shapes:  hidden_states, y: [batch, num_tokens, dim]; encoder_hidden_states: [batch, num_encoder_tokens,
             cross_attention_dim].
    Dtypes:  bf16, fp16 or fp32; norms and softmax in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Rombach et al. 2021 (https://arxiv.org/abs/2112.10752); as diffusers' BasicTransformerBlock.
    """

    spec = OpSpec(
        inputs={"hidden_states": _TOKENS, "encoder_hidden_states": _ENCODED},
        outputs={"y": _TOKENS},
        examples=(
            {"dim": 24, "num_attention_heads": 3, "cross_attention_dim": 40},
            {"dim": 45, "num_attention_heads": 5, "cross_attention_dim": 33},
        ),
        example_axes={"batch": (2, 1), "num_tokens": (35, 6), "num_encoder_tokens": (13, 5)},
    )

    def __init__(self, dim: int, num_attention_heads: int, cross_attention_dim: int, prefix: str = "") -> None:
        super().__init__()
        self.dim, self.cross_attention_dim = dim, cross_attention_dim
        head_dim = dim // num_attention_heads
        self.norm1 = LayerNorm(dim)
        self.attn1 = UNetSelfAttention(dim, num_attention_heads, head_dim, prefix=f"{prefix}.attn1")
        self.norm2 = LayerNorm(dim)
        self.attn2 = UNetCrossAttention(
            dim, cross_attention_dim, num_attention_heads, head_dim, prefix=f"{prefix}.attn2"
        )
        self.norm3 = LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        normed, hidden_states = self.norm2(self.attn1(self.norm1(hidden_states)), hidden_states)
        normed, hidden_states = self.norm3(self.attn2(normed, encoder_hidden_states), hidden_states)
        return hidden_states + self.ff(normed)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        flops = sum(p.cost(inputs, {}).num_flops for p in (self.attn1, self.attn2, self.ff))
        return Cost(super().cost(inputs, outputs).num_bytes, flops)


class Transformer2DModel(Op):
    """y = x + proj_out(blocks(proj_in(norm(x)), encoder_hidden_states)), a token a pixel.

    Shapes:  hidden_states, y: [batch, in_channels, height, width]; encoder_hidden_states: [batch, num_encoder_tokens,
             cross_attention_dim].
    Dtypes:  bf16, fp16 or fp32; norms and softmax in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Podell et al. 2023 (https://arxiv.org/abs/2307.01952); as diffusers' Transformer2DModel with
             linear projections.
    """

    spec = OpSpec(
        inputs={
            "hidden_states": TensorSpec(("batch", "in_channels", "height", "width")),
            "encoder_hidden_states": _ENCODED,
        },
        outputs={"y": TensorSpec(("batch", "in_channels", "height", "width"))},
        examples=(
            {"in_channels": 24, "num_attention_heads": 3, "num_layers": 2, "cross_attention_dim": 40, "groups": 8},
            {"in_channels": 15, "num_attention_heads": 5, "num_layers": 1, "cross_attention_dim": 11, "groups": 3},
        ),
        example_axes={"batch": (2, 1), "height": (5, 1), "width": (7, 6), "num_encoder_tokens": (13, 5)},
    )

    def __init__(
        self,
        in_channels: int,
        num_attention_heads: int,
        num_layers: int,
        cross_attention_dim: int,
        groups: int = 32,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.in_channels, self.cross_attention_dim = in_channels, cross_attention_dim
        self.norm = GroupNorm(groups, in_channels, 1e-6)
        self.proj_in = Linear(in_channels, in_channels)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                in_channels, num_attention_heads, cross_attention_dim, prefix=f"{prefix}.transformer_blocks.{i}"
            )
            for i in range(num_layers)
        )
        self.proj_out = Linear(in_channels, in_channels)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        height, width = hidden_states.shape[2:]
        tokens = self.proj_in(self.norm(hidden_states).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            tokens = block(tokens, encoder_hidden_states)
        return hidden_states + self.proj_out(tokens).transpose(1, 2).unflatten(2, (height, width))

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        tokens = inputs["hidden_states"].flatten(2).transpose(1, 2)
        given = {"hidden_states": tokens, "encoder_hidden_states": inputs["encoder_hidden_states"]}
        flops = sum(block.cost(given, {}).num_flops for block in self.transformer_blocks)  # type: ignore[operator]
        flops += 4 * tokens.numel() * self.in_channels
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
