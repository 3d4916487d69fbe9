"""GPT-OSS's activation: a clamped SwiGLU whose gates and values alternate in a row."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.swiglu_oai_and_mul import swiglu_oai_and_mul
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec


class SwigluOAIAndMul(Op):
    """y = (up + 1) * gate * sigmoid(alpha * gate); gate = min(x[..., 0::2], limit), up = clamp(x[..., 1::2], +-limit).

    Shapes:  x: [..., 2*d]; y: [..., d].
    Dtypes:  bf16, fp16 or fp32; computed in fp32 and rounded once.
    Returns: y. No argument is written to.
    Errors:  ValueError when the last axis of x is odd or empty.
    Source:  OpenAI 2025 (https://arxiv.org/abs/2508.10925); signature as vLLM's SwigluOAIAndMul.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("...", "2*d")).strided()},
        outputs={"y": TensorSpec(("...", "d"))},
        examples=({}, {"alpha": 1.0, "limit": 1.5}),
        example_axes={"d": (64, 257, 4099)},
    )

    def __init__(self, alpha: float = 1.702, limit: float = 7.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2 or not x.shape[-1]:
            raise ValueError(f"SwigluOAIAndMul takes pairs of a row, got x of shape {tuple(x.shape)}.")
        return self.reference(x) if uses_reference(x) else swiglu_oai_and_mul(x, self.alpha, self.limit)

    def reference(self, x: Tensor) -> Tensor:
        gate, up = x.to(compute_dtype(x)).unflatten(-1, (-1, 2)).unbind(-1)
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return ((up + 1) * gate * torch.sigmoid(self.alpha * gate)).to(x.dtype)
