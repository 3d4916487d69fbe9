"""The dense layer that scores experts; its result is not rounded to the dtype of the activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastkernels.context import uses_reference
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, TensorSpec


class GateLinear(Op):
    """y = x @ weight.T (+ bias), in float32: rounded scores of two experts would often be equal, or change places.

    Shapes:  x: [num_tokens, input_size]; weight: [output_size, input_size]; bias: [output_size]; y: [num_tokens,
             output_size].
    Dtypes:  x, weight and bias alike, bf16, fp16 or fp32; y fp32.
    Returns: y. No argument is written to.
    Errors:  ValueError when the rows of x are not of input_size.
    Source:  signature as vLLM's GateLinear with out_dtype float32.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("num_tokens", "input_size")).strided()},
        outputs={"y": TensorSpec(("num_tokens", "output_size"), dtype="float32")},
        examples=(
            {"input_size": 64, "output_size": 32},
            {"input_size": 131, "output_size": 67, "bias": True},
        ),
        is_exact_on_integers=True,
    )

    def __init__(self, input_size: int, output_size: int, bias: bool = False) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self.weight = nn.Parameter(torch.empty(output_size, input_size).normal_(std=input_size**-0.5))
        self.bias = nn.Parameter(torch.empty(output_size).normal_(std=0.02)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self.input_size:
            raise ValueError(f"GateLinear has input_size {self.input_size}, got x of shape {tuple(x.shape)}.")
        if uses_reference(x) or x.dtype == torch.float32:
            return self.reference(x)
        y = torch.mm(x, self.weight.t(), out_dtype=torch.float32)
        return y if self.bias is None else y + self.bias

    def reference(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        return linear(x.to(dtype), self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        return Cost(super().cost(inputs, outputs).num_bytes, 2 * len(inputs["x"]) * self.weight.numel())
