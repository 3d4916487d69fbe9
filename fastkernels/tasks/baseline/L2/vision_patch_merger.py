"""Neighbouring patches merged into one vector of the language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.gelu import GELU
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L2.parallel_linear import ColumnParallelLinear, RowParallelLinear


class VisionPatchMerger(Op):
    """y = linear(gelu(linear(ln_q(x) of spatial_merge_size^2 patches in a row, side by side))).

    Shapes:  x: [num_merged * spatial_merge_size^2, context_dim]; y: [num_merged, d_model].
    Dtypes:  bf16, fp16 or fp32; the norm and the activation in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Wang et al. 2024 (https://arxiv.org/abs/2409.12191), section 2.1; as vLLM's Qwen2VisionPatchMerger.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("num_patches", "context_dim"))},
        outputs={"y": TensorSpec(("num_merged", "d_model"))},
        examples=(
            {"d_model": 48, "context_dim": 32},
            {"d_model": 37, "context_dim": 20, "spatial_merge_size": 3},
        ),
        example_axes={"num_merged": (13, 1, 7)},
    )

    def __init__(
        self,
        d_model: int,
        context_dim: int,
        spatial_merge_size: int = 2,
        norm_eps: float = 1e-6,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.d_model, self.context_dim = d_model, context_dim
        self.merged_patches = spatial_merge_size**2
        self.merged_dim = context_dim * self.merged_patches
        self.ln_q = LayerNorm(context_dim, norm_eps)
        self.mlp = nn.ModuleList(
            [
                ColumnParallelLinear(self.merged_dim, self.merged_dim, prefix=f"{prefix}.mlp.0"),
                GELU(),
                RowParallelLinear(self.merged_dim, d_model, prefix=f"{prefix}.mlp.2"),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        first, act_fn, second = self.mlp
        hidden, _ = first(self.ln_q(x).view(-1, self.merged_dim))
        y, _ = second(act_fn(hidden))
        return y

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_patches": sizes["num_merged"] * self.merged_patches}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        matrices = sum(p.numel() for p in self.mlp.parameters() if p.dim() == 2)
        return Cost(super().cost(inputs, outputs).num_bytes, 2 * len(outputs["y"]) * matrices)
