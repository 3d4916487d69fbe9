"""Batch normalisation of images by running statistics, alone or with the activation that follows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from fastkernels.context import uses_reference
from fastkernels.kernels.batch_norm2d import batch_norm2d
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec

_IMAGES = TensorSpec(("batch", "num_features", "height", "width"))


class BatchNorm2d(Op):
    """y = act((x - running_mean) / sqrt(running_var + eps) * weight + bias), a number of each a channel.

    Shapes:  x, y: [batch, num_features, height, width]; weight, bias, running_mean, running_var: [num_features].
    Dtypes:  bf16, fp16 or fp32; computed in fp32 and rounded once.
    Returns: y, laid out as x. No argument is written to, nor the statistics: this is inference.
    Errors:  ValueError when x has other channels, or for another activation than "silu".
    Source:  Ioffe & Szegedy 2015 (https://arxiv.org/abs/1502.03167); signature as torch.nn.BatchNorm2d in eval.
    """

    spec = OpSpec(
        inputs={"x": _IMAGES},
        outputs={"y": _IMAGES},
        examples=({"num_features": 24}, {"num_features": 37, "eps": 1e-3, "activation": "silu"}),
        example_axes={"batch": (2, 1), "height": (9, 16), "width": (7, 32)},
    )

    def __init__(self, num_features: int, eps: float = 1e-5, activation: str | None = None) -> None:
        super().__init__()
        if activation not in (None, "silu"):
            raise ValueError(f"activation is None or 'silu', got {activation!r}.")
        self.num_features, self.eps, self.activation = num_features, eps, activation
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def coupled_params(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Statistics as of activations behind a SiLU, which keep their size then: no mean, variances below one."""
        noise = torch.rand(2, self.num_features, generator=generator)
        return {"running_mean": 0.6 * noise[0] - 0.3, "running_var": 0.2 + 0.3 * noise[1]}

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.num_features:
            raise ValueError(f"BatchNorm2d takes [batch, {self.num_features}, height, width], got {tuple(x.shape)}.")
        if uses_reference(x):
            return self.reference(x)
        statistics = (self.weight, self.bias, self.running_mean, self.running_var)
        return batch_norm2d(x, *statistics, self.eps, self.activation == "silu")

    def reference(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        weight, bias, mean, var = (
            t.to(dtype)[:, None, None] for t in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        y = (x.to(dtype) - mean) / (var + self.eps).sqrt() * weight + bias
        return (silu(y) if self.activation == "silu" else y).to(x.dtype)
