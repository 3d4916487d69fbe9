"""From a vector of frequencies or sizes to what every block of a UNet is told."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.linear import Linear
from fastkernels.tasks.baseline.L1.silu import SiLU


class TimestepEmbedding(Op):
    """y = linear_2(silu(linear_1(x))).

    Shapes:  sample: [..., in_channels]; y: [..., time_embed_dim].
    Dtypes:  bf16, fp16 or fp32; the activation in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  signature as diffusers' TimestepEmbedding.
    """

    spec = OpSpec(
        inputs={"sample": TensorSpec(("...", "in_channels")).strided()},
        outputs={"y": TensorSpec(("...", "time_embed_dim"))},
        examples=({"in_channels": 16, "time_embed_dim": 64}, {"in_channels": 9, "time_embed_dim": 21}),
    )

    def __init__(self, in_channels: int, time_embed_dim: int) -> None:
        super().__init__()
        self.in_channels, self.time_embed_dim = in_channels, time_embed_dim
        self.linear_1 = Linear(in_channels, time_embed_dim)
        self.act = SiLU()
        self.linear_2 = Linear(time_embed_dim, time_embed_dim)

    def forward(self, sample: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(sample)))

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_rows = inputs["sample"].numel() // self.in_channels
        matrices = self.linear_1.weight.numel() + self.linear_2.weight.numel()
        return Cost(super().cost(inputs, outputs).num_bytes, 2 * num_rows * matrices)
