"""One layer of a vision tower."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, scalar
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L2.vision_attention import PATCHES, PLACES, VisionAttention
from fastkernels.tasks.baseline.L2.vision_mlp import VisionMLP
from fastkernels.tasks.baseline.paged_attention import QUERY_START_LOC


class VisionBlock(Op):
    """h = x + attn(norm1(x)); y = h + mlp(norm2(h)).

    Shapes:  x, y: [num_tokens, hidden_size]; positions: [2, num_tokens], row and column of each patch;
             query_start_loc: [num_frames + 1], the first patch of each frame; max_query_len: of the largest frame.
    Dtypes:  bf16, fp16 or fp32; positions int64, query_start_loc int32; norms and softmax in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Wang et al. 2024 (https://arxiv.org/abs/2409.12191), section 2.1; as vLLM's Qwen2VisionBlock.
    """

    spec = OpSpec(
        inputs={
            "x": PATCHES,
            "positions": PLACES,
            "query_start_loc": QUERY_START_LOC,
            "max_query_len": scalar(Role.MAX_QUERY_LEN),
        },
        outputs={"y": PATCHES},
        examples=(
            {"hidden_size": 64, "num_heads": 4, "intermediate_size": 176, "max_position_embeddings": 64},
            {
                "hidden_size": 60,
                "num_heads": 3,
                "intermediate_size": 89,
                "hidden_act": "gelu_pytorch_tanh",
                "max_position_embeddings": 97,
            },
        ),
    )

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        hidden_act: str = "quick_gelu",
        norm_eps: float = 1e-6,
        max_position_embeddings: int = 8192,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.max_position_embeddings = max_position_embeddings
        self.norm1 = LayerNorm(hidden_size, norm_eps)
        self.norm2 = LayerNorm(hidden_size, norm_eps)
        self.attn = VisionAttention(hidden_size, num_heads, max_position_embeddings, prefix=f"{prefix}.attn")
        self.mlp = VisionMLP(hidden_size, intermediate_size, hidden_act, prefix=f"{prefix}.mlp")

    def forward(self, x: Tensor, positions: Tensor, query_start_loc: Tensor, max_query_len: int) -> Tensor:
        attended = self.attn(self.norm1(x), positions, query_start_loc, max_query_len)
        normed, x = self.norm2(attended, x)
        return x + self.mlp(normed)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        nothing = {**inputs, "x": inputs["x"][:0]}
        attention = self.attn.cost(nothing, {})
        matrices = sum(p.numel() for p in self.parameters() if p.dim() == 2)
        flops = attention.num_flops + 2 * len(inputs["x"]) * matrices
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
