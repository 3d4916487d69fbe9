"""A dense layer: one matrix multiplication."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastkernels.context import uses_reference
from fastkernels.kernels.skinny_linear import fast_linear
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, TensorSpec


class Linear(Op):
    """y = x @ weight.T (+ bias).

    Shapes:  x: [..., input_size]; weight: [output_size, input_size]; bias: [output_size]; y: [..., output_size].
    Dtypes:  x, weight and bias alike, bf16, fp16 or fp32; products are summed in at least fp32.
    Returns: y. No argument is written to.
    Errors:  ValueError when the last axis of x is not input_size.
    Source:  signature as vLLM's ReplicatedLinear, without its bookkeeping.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("...", "input_size")).strided()},
        outputs={"y": TensorSpec(("...", "output_size"))},
        examples=(
            {"input_size": 64, "output_size": 96, "bias": False},
            {"input_size": 2053, "output_size": 67, "bias": True},
            {"input_size": 512, "output_size": 1, "bias": False},
        ),
        is_exact_on_integers=True,
    )

    def __init__(self, input_size: int, output_size: int, bias: bool = True) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self.weight = nn.Parameter(torch.empty(output_size, input_size).normal_(std=input_size**-0.5))
        self.bias = nn.Parameter(torch.empty(output_size).normal_(std=0.02)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.input_size:
            raise ValueError(f"Linear has input_size {self.input_size}, got x of shape {tuple(x.shape)}.")
        if uses_reference(x):
            return self.reference(x)
        return fast_linear(x, self.weight, self.bias)

    def reference(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        return linear(x.to(dtype), self.weight.to(dtype), bias).to(x.dtype)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_rows = inputs["x"].numel() // self.input_size
        num_bytes = super().cost(inputs, outputs).num_bytes
        return Cost(num_bytes, 2 * num_rows * self.input_size * self.output_size)
