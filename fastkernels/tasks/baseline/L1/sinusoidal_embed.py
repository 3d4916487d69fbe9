"""Sines and cosines of a number at many frequencies."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec


class SinusoidalEmbed(Op):
    """y = [sin(f_i * x), cos(f_i * x)] with f_i = max_period^(-i / (dim / 2 - downscale_freq_shift)).

    With a min_period the waves' periods go from it to max_period, in equal ratios: f_i = 2 pi / period_i.

    Shapes:  x: [num]; y: [num, dim], the cosines first when flip_sin_to_cos.
    Dtypes:  bf16, fp16 or fp32 of x; angles and y in at least fp32.
    Returns: y. No argument is written to.
    Errors:  ValueError when dim is odd or too small for the shift.
    Source:  Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762), 3.5; parameters as those of
             get_timestep_embedding of diffusers, min_period as openpi's create_sinusoidal_pos_embedding.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("num",))},
        outputs={"y": TensorSpec(("num", "dim"), dtype="float32")},
        examples=(
            {"dim": 32, "flip_sin_to_cos": True, "downscale_freq_shift": 0.0},
            {"dim": 14, "max_period": 40.0, "min_period": 2.0},
        ),
        example_axes={"num": (11, 7)},
    )

    def __init__(
        self,
        dim: int,
        flip_sin_to_cos: bool = False,
        downscale_freq_shift: float = 1.0,
        max_period: float = 10000.0,
        min_period: float | None = None,
    ) -> None:
        super().__init__()
        if dim % 2 or dim // 2 <= downscale_freq_shift:
            raise ValueError(f"dim must be even and more than twice the shift {downscale_freq_shift}, got {dim}.")
        self.dim = dim
        self.flip_sin_to_cos = flip_sin_to_cos
        self.downscale_freq_shift = downscale_freq_shift
        self.max_period, self.min_period = max_period, min_period

    def forward(self, x: Tensor) -> Tensor:
        return self.reference(x)

    def reference(self, x: Tensor) -> Tensor:
        dtype, half = compute_dtype(x), self.dim // 2
        if self.min_period is None:
            exponents = torch.arange(half, dtype=dtype, device=x.device) / (half - self.downscale_freq_shift)
            frequencies = torch.exp(-math.log(self.max_period) * exponents)
        else:  # in this order: a rounding of the largest is an angle of 1e-4
            exponents = torch.linspace(0, 1, half, dtype=dtype, device=x.device)
            periods = self.min_period * (self.max_period / self.min_period) ** exponents
            frequencies = 1 / periods * 2 * math.pi
        angles = x.to(dtype)[:, None] * frequencies
        parts = (angles.cos(), angles.sin()) if self.flip_sin_to_cos else (angles.sin(), angles.cos())
        return torch.cat(parts, dim=-1)
