"""LayerNorm over the last axis, alone or fused with the scaled residual add that precedes it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from fastkernels.context import uses_reference
from fastkernels.kernels.layer_norm import add_layer_norm, layer_norm_of_sum
from fastkernels.kernels.layer_norm import layer_norm as layer_norm_kernel
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec

_ROWS = TensorSpec(("...", "normalized_shape"))


class LayerNorm(Op):
    """y = (h - mean(h)) / sqrt(var(h) + eps) * weight + bias, mean and variance over the last axis, with h = x, or with
    h = residual + x, or residual + scale * x.

    Shapes:  x, residual, y, new_residual: [..., normalized_shape]; scale, weight, bias: [normalized_shape].
    Dtypes:  bf16, fp16 or fp32, x, residual and scale alike; computed in fp32, y and h rounded once.
    Returns: y, or (y, h) when a residual is given; with returns_sum=False y alone. No argument is written to.
    Errors:  ValueError when the last axis of x is not normalized_shape, the residual has another shape than x, or there
             is a scale without a residual.
    Source:  Ba et al. 2016 (https://arxiv.org/abs/1607.06450); signature as torch.nn.LayerNorm of one axis. The scale
             is LayerScale: Touvron et al. 2021 (https://arxiv.org/abs/2103.17239), eq. 4.
    """

    spec = OpSpec(
        inputs={
            "x": _ROWS.strided(),
            "residual": _ROWS.strided().optional(),
            "scale": TensorSpec(("normalized_shape",)).optional(),
        },
        outputs={"y": _ROWS, "new_residual": _ROWS.optional()},
        returned_with={"new_residual": "residual"},
        examples=(
            {"normalized_shape": 64},
            {"normalized_shape": 257, "eps": 1e-6, "bias": False},
            {"normalized_shape": 4099, "elementwise_affine": False},
        ),
    )

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        returns_sum: bool = True,
    ) -> None:
        super().__init__()
        self.normalized_shape = normalized_shape
        self.eps = eps
        self.returns_sum = returns_sum
        self.weight = nn.Parameter(torch.ones(normalized_shape)) if elementwise_affine else None
        self.bias = nn.Parameter(torch.zeros(normalized_shape)) if elementwise_affine and bias else None

    def forward(
        self, x: Tensor, residual: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if x.shape[-1] != self.normalized_shape:
            raise ValueError(f"LayerNorm has normalized_shape {self.normalized_shape}, got x of {tuple(x.shape)}.")
        if residual is None and scale is not None:
            raise ValueError("LayerNorm scales x before it is added to a residual; got a scale and no residual.")
        if residual is not None and residual.shape != x.shape:
            raise ValueError(f"LayerNorm adds x of {tuple(x.shape)} to a residual of {tuple(residual.shape)}.")
        if uses_reference(x):
            return self.reference(x, residual, scale)
        if residual is None:
            return layer_norm_kernel(x, self.weight, self.bias, self.eps)
        of_sum = add_layer_norm if self.returns_sum else layer_norm_of_sum
        return of_sum(x, residual, scale, self.weight, self.bias, self.eps)

    def reference(
        self, x: Tensor, residual: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        dtype = compute_dtype(x)
        h = x.to(dtype)
        if scale is not None:
            h = h * scale.to(dtype)
        if residual is not None:
            h = h + residual.to(dtype)
        weight, bias = (None if p is None else p.to(dtype) for p in (self.weight, self.bias))
        y = layer_norm(h, (self.normalized_shape,), weight, bias, self.eps).to(x.dtype)
        return y if residual is None or not self.returns_sum else (y, h.to(x.dtype))
