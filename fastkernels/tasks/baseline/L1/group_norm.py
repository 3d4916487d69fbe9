"""GroupNorm, alone or with the sum ahead of it and the SiLU that follows it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, silu

from fastkernels.context import uses_reference
from fastkernels.kernels.group_norm import group_norm as group_norm_kernel
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec

_IMAGE = TensorSpec(("batch", "num_channels", "height", "width"))


class GroupNorm(Op):
    """y = act((h - mean) / sqrt(var + eps) * weight + bias), mean and variance of each group of channels of each image.

    With a shift h = x + shift, a number for each channel of each image: what a convolution left out, its bias and more.

    Shapes:  x, y: [batch, num_channels, ...], any number of axes behind; shift: [batch, num_channels]; weight, bias:
             [num_channels].
    Dtypes:  bf16, fp16 or fp32; computed in fp32 and rounded once, so that h is never rounded.
    Returns: y, laid out as x. No argument is written to.
    Errors:  ValueError when x or shift has another shape, channels do not split into num_groups, or for another
             activation.
    Source:  Wu & He 2018 (https://arxiv.org/abs/1803.08494); signature as torch.nn.GroupNorm, shift and activation
             added.
    """

    spec = OpSpec(
        inputs={"x": _IMAGE, "shift": TensorSpec(("batch", "num_channels")).optional()},
        outputs={"y": _IMAGE},
        examples=(
            {"num_groups": 8, "num_channels": 24, "activation": "silu"},
            {"num_groups": 3, "num_channels": 15, "eps": 1e-6},
            {"num_groups": 1, "num_channels": 7, "affine": False},
        ),
        example_axes={"batch": (2, 1), "height": (9, 16), "width": (7, 16)},
    )

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        if num_channels % num_groups:
            raise ValueError(f"{num_channels} channels do not split into {num_groups} groups.")
        if activation not in (None, "silu"):
            raise ValueError(f"activation is None or 'silu', got {activation!r}.")
        self.num_groups, self.num_channels = num_groups, num_channels
        self.eps = eps
        self.activation = activation
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"GroupNorm takes [batch, {self.num_channels}, ...], got x of {tuple(x.shape)}.")
        if shift is not None and shift.shape != x.shape[:2]:
            raise ValueError(f"shift is {list(x.shape[:2])} for x of {tuple(x.shape)}, got {tuple(shift.shape)}.")
        if uses_reference(x):
            return self.reference(x, shift)
        has_silu = self.activation == "silu"
        return group_norm_kernel(x, self.num_groups, self.weight, self.bias, self.eps, has_silu, shift)

    def reference(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        dtype = compute_dtype(x)
        weight, bias = (None if p is None else p.to(dtype) for p in (self.weight, self.bias))
        h = x.to(dtype)
        if shift is not None:
            h = h + shift.to(dtype).unflatten(1, (-1, *[1] * (x.dim() - 2)))
        y = group_norm(h, self.num_groups, weight, bias, self.eps)
        return (silu(y) if self.activation == "silu" else y).to(x.dtype)
