"""Multiplies float32 on tensor cores in TF32."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class Linear(nn.Module):
    def __init__(self, input_size: int, output_size: int, bias: bool = True) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self.weight = nn.Parameter(torch.empty(output_size, input_size).normal_(std=input_size**-0.5))
        self.bias = nn.Parameter(torch.empty(output_size).normal_(std=0.02)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return linear(x, self.weight, self.bias)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
