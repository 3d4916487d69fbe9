"""A gate between 0 and 1 times its value."""

from __future__ import annotations

from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.sigmoid_mul import sigmoid_mul
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec


class SigmoidMul(Op):
    """y = x * sigmoid(gate), one gate an element, or one a row.

    Shapes:  x, y: [..., hidden_size]; gate: [..., gate_size], gate_size 1 or hidden_size.
    Dtypes:  bf16, fp16 or fp32; computed in fp32 and rounded once.
    Returns: y. No argument is written to.
    Errors:  ValueError when gate_size is neither 1 nor hidden_size, or an argument is not of its size.
    Source:  Qiu et al. 2025 (https://arxiv.org/abs/2505.06708), of attention's output.
    """

    spec = OpSpec(
        inputs={
            "x": TensorSpec(("...", "hidden_size")).strided(),
            "gate": TensorSpec(("...", "gate_size")).strided(),
        },
        outputs={"y": TensorSpec(("...", "hidden_size"))},
        examples=({"hidden_size": 64}, {"hidden_size": 257, "gate_size": 1}),
    )

    def __init__(self, hidden_size: int, gate_size: int | None = None) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.gate_size = hidden_size if gate_size is None else gate_size
        if self.gate_size not in (1, hidden_size):
            raise ValueError(f"gate_size must be 1 or hidden_size {hidden_size}, got {gate_size}.")

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        if (x.shape[-1], gate.shape[-1]) != (self.hidden_size, self.gate_size):
            raise ValueError(
                f"SigmoidMul takes rows of {self.hidden_size} and {self.gate_size}, got x {tuple(x.shape)} and gate "
                f"{tuple(gate.shape)}."
            )
        return self.reference(x, gate) if uses_reference(x) else sigmoid_mul(x, gate)

    def reference(self, x: Tensor, gate: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        return (x.to(dtype) * gate.to(dtype).sigmoid()).to(x.dtype)
