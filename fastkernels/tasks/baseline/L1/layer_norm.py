"""LayerNorm over the last axis."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from fastkernels.context import uses_reference
from fastkernels.kernels.layer_norm import layer_norm as layer_norm_kernel
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec

_ROWS = TensorSpec(("...", "normalized_shape"))


class LayerNorm(Op):
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, mean and variance over the last axis.

    Shapes:  x, y: [..., normalized_shape]; weight, bias: [normalized_shape].
    Dtypes:  bf16, fp16 or fp32; computed in fp32 and rounded once.
    Returns: y. No argument is written to.
    Errors:  ValueError when the last axis of x is not normalized_shape.
    Source:  Ba et al. 2016 (https://arxiv.org/abs/1607.06450); signature as torch.nn.LayerNorm of one axis.
    """

    spec = OpSpec(
        inputs={"x": _ROWS.strided()},
        outputs={"y": _ROWS},
        examples=(
            {"normalized_shape": 64},
            {"normalized_shape": 257, "eps": 1e-6, "bias": False},
            {"normalized_shape": 4099, "elementwise_affine": False},
        ),
    )

    def __init__(
        self, normalized_shape: int, eps: float = 1e-5, elementwise_affine: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        self.normalized_shape = normalized_shape
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(normalized_shape)) if elementwise_affine else None
        self.bias = nn.Parameter(torch.zeros(normalized_shape)) if elementwise_affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.normalized_shape:
            raise ValueError(f"LayerNorm has normalized_shape {self.normalized_shape}, got x of {tuple(x.shape)}.")
        return self.reference(x) if uses_reference(x) else layer_norm_kernel(x, self.weight, self.bias, self.eps)

    def reference(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        weight, bias = (None if p is None else p.to(dtype) for p in (self.weight, self.bias))
        return layer_norm(x.to(dtype), (self.normalized_shape,), weight, bias, self.eps).to(x.dtype)
