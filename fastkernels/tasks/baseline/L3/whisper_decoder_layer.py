"""One layer of Whisper's decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L2.cross_attention import drawn_encoder_tokens
from fastkernels.tasks.baseline.L2.vision_mlp import VisionMLP
from fastkernels.tasks.baseline.L2.whisper_attention import (
    ENCODER_STATES,
    HIDDEN,
    WhisperAttention,
    WhisperCrossAttention,
)


class WhisperDecoderLayer(Op):
    """h = x + self_attn(norm(x)); h += encoder_attn(norm(h), encoder_hidden_states); y = h + mlp(norm(h)).

    With a residual, x = hidden_states + residual, and the last sum is left to the next: it returns mlp(norm(h)) and h.

    Shapes:  hidden_states, residual, y, new_residual: [num_tokens, embed_dim]; encoder_hidden_states:
             [num_encoder_tokens, embed_dim], of the sequences that begin with this step; None when none does.
    Dtypes:  bf16, fp16 or fp32; norms, the activation and softmax in fp32.
    Returns: y, or (mlp(norm(h)), h) when a residual is given. Writes to the kv_cache of both attentions; no argument
             is written to.
    Errors:  those of its parts.
    Source:  Radford et al. 2022 (https://arxiv.org/abs/2212.04356); as vLLM's WhisperDecoderLayer.
    """

    spec = OpSpec(
        inputs={
            "hidden_states": HIDDEN,
            "encoder_hidden_states": ENCODER_STATES,
            "residual": HIDDEN.optional(),
        },
        outputs={"y": HIDDEN, "new_residual": HIDDEN.optional()},
        returned_with={"new_residual": "residual"},
        mutates=("kv_cache",),
        reads_context=True,
        examples=(
            {"embed_dim": 64, "num_heads": 4, "ffn_dim": 112},
            {"embed_dim": 51, "num_heads": 3, "ffn_dim": 67},
        ),
    )

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, prefix: str = "") -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.self_attn_layer_norm = LayerNorm(embed_dim)
        self.self_attn = WhisperAttention(embed_dim, num_heads, prefix=f"{prefix}.self_attn")
        self.encoder_attn_layer_norm = LayerNorm(embed_dim)
        self.encoder_attn = WhisperCrossAttention(embed_dim, num_heads, prefix=f"{prefix}.encoder_attn")
        self.final_layer_norm = LayerNorm(embed_dim)
        self.mlp = VisionMLP(embed_dim, ffn_dim, prefix=f"{prefix}.mlp")

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if residual is None:
            normed, x = self.self_attn_layer_norm(hidden_states), hidden_states
        else:
            normed, x = self.self_attn_layer_norm(hidden_states, residual)
        normed, x = self.encoder_attn_layer_norm(self.self_attn(normed), x)
        normed, x = self.final_layer_norm(self.encoder_attn(normed, encoder_hidden_states), x)
        y = self.mlp(normed)
        return x + y if residual is None else (y, x)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return drawn_encoder_tokens(sizes)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """Each part's own; what one gives the next is not counted."""
        x, states, residual = inputs["hidden_states"], inputs.get("encoder_hidden_states"), inputs.get("residual")
        parts = [
            self.self_attn.cost({"hidden_states": x}, {}),
            self.encoder_attn.cost({"hidden_states": x, "encoder_hidden_states": states}, {}),
            self.mlp.cost({"x": x}, {}),
        ]
        row_bytes = x.numel() * x.element_size()
        norms = 3 * 2 * self.embed_dim * x.element_size()
        num_bytes = sum(part.num_bytes for part in parts) - 3 * row_bytes + norms
        given = sum(t.numel() * t.element_size() for t in (*outputs.values(), residual) if t is not None)
        return Cost(num_bytes + row_bytes + given, sum(part.num_flops for part in parts))
