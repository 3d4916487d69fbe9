"""Gemma's RMSNorm: its weight is the distance from one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastkernels.context import uses_reference
from fastkernels.kernels.rms_norm import add_rms_norm, rms_norm
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import TOKENS, OpSpec


class GemmaRMSNorm(Op):
    """y = h / sqrt(mean(h^2) + eps) * (1 + weight), with h = x (+ residual).

    Shapes:  x, residual, y, new residual: [..., hidden_size]; weight: [hidden_size].
    Dtypes:  activations bf16, fp16 or fp32; computed in fp32 and rounded once.
    Returns: y, or (y, h) when a residual is given. No argument is written to.
    Errors:  ValueError when the last axis of x is not hidden_size.
    Source:  Zhang & Sennrich 2019 (https://arxiv.org/abs/1910.07467), eq. 4; signature as vLLM's GemmaRMSNorm.
    """

    spec = OpSpec(
        inputs={"x": TOKENS.strided(), "residual": TOKENS.strided().optional()},
        outputs={"y": TOKENS, "new_residual": TOKENS.optional()},
        returned_with={"new_residual": "residual"},
        examples=({"hidden_size": 64}, {"hidden_size": 257, "eps": 1e-5}),
    )

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if x.shape[-1] != self.hidden_size:
            raise ValueError(f"GemmaRMSNorm has hidden_size {self.hidden_size}, got x of shape {tuple(x.shape)}.")
        if uses_reference(x):
            return self.reference(x, residual)
        if residual is None:
            return rms_norm(x, self.weight, self.eps, is_from_one=True)
        return add_rms_norm(x, residual, self.weight, self.eps, is_from_one=True)

    def reference(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        h = x.to(compute_dtype(x))
        if residual is not None:
            h = h + residual.to(h.dtype)
        y = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight.to(h.dtype))
        return y.to(x.dtype) if residual is None else (y.to(x.dtype), h.to(x.dtype))

    def coupled_params(self, generator: torch.Generator) -> dict[str, Tensor]:
        """About 0, as a weight that is a distance from 1 is; about 1 it would double every row."""
        return {"weight": 0.2 * torch.randn(self.hidden_size, generator=generator)}
