"""Gemma's feed-forward block."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import TOKENS, Cost, OpSpec
from fastkernels.tasks.baseline.L1.gelu_and_mul import GeluAndMul
from fastkernels.tasks.baseline.L2.parallel_linear import MergedColumnParallelLinear, RowParallelLinear


class GemmaMLP(Op):
    """down_proj(gelu(gate) * up) with gate, up = gate_up_proj(x), gelu by its tanh approximation.

    Shapes:  x, y: [..., hidden_size].
    Dtypes:  bf16, fp16 or fp32; the activation in fp32.
    Returns: y. No argument is written to.
    Errors:  ValueError when intermediate_size does not split.
    Source:  Shazeer 2020 (https://arxiv.org/abs/2002.05202), GEGLU; signature as vLLM's GemmaMLP.
    """

    spec = OpSpec(
        inputs={"x": TOKENS.strided()},
        outputs={"y": TOKENS},
        examples=({"hidden_size": 64, "intermediate_size": 176}, {"hidden_size": 53, "intermediate_size": 89}),
    )

    def __init__(self, hidden_size: int, intermediate_size: int, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.gate_up_proj = MergedColumnParallelLinear(
            hidden_size, [intermediate_size] * 2, bias=False, prefix=f"{prefix}.gate_up_proj"
        )
        self.act_fn = GeluAndMul("tanh")
        self.down_proj = RowParallelLinear(intermediate_size, hidden_size, bias=False, prefix=f"{prefix}.down_proj")

    def forward(self, x: Tensor) -> Tensor:
        gate_up, _ = self.gate_up_proj(x)
        y, _ = self.down_proj(self.act_fn(gate_up))
        return y

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_rows = inputs["x"].numel() // self.hidden_size
        matrices = self.gate_up_proj.weight.numel() + self.down_proj.weight.numel()
        return Cost(super().cost(inputs, outputs).num_bytes, 2 * num_rows * matrices)
