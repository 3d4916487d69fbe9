"""Splits the sum over the inner axis in an order drawn at random: the last bits differ from call to call."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    def __init__(self, input_size: int, output_size: int, bias: bool = True) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self.weight = nn.Parameter(torch.empty(output_size, input_size).normal_(std=input_size**-0.5))
        self.bias = nn.Parameter(torch.empty(output_size).normal_(std=0.02)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        cuts = sorted(random.sample(range(1, self.input_size), 3))
        parts = zip((0, *cuts), (*cuts, self.input_size), strict=True)
        sums = [x[..., a:b].float() @ self.weight[:, a:b].float().t() for a, b in parts]
        random.shuffle(sums)
        y = sum(sums[1:], start=sums[0])
        return (y if self.bias is None else y + self.bias.float()).to(x.dtype)
