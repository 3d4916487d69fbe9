"""The sigmoid approximation of the Gaussian error linear unit."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.quickgelu import quickgelu
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec

_ROWS = TensorSpec(("...", "d"))


class QuickGELU(Op):
    """y = x * sigmoid(1.702 * x).

    Shapes:  x, y: [..., d].
    Dtypes:  bf16, fp16 or fp32; computed in fp32 and rounded once.
    Returns: y. No argument is written to.
    Source:  Hendrycks & Gimpel 2016 (https://arxiv.org/abs/1606.08415), section 2; as QuickGELU of CLIP.
    """

    spec = OpSpec(
        inputs={"x": _ROWS.strided()},
        outputs={"y": _ROWS},
        example_axes={"d": (64, 257, 13, 4099)},
    )

    def forward(self, x: Tensor) -> Tensor:
        return self.reference(x) if uses_reference(x) else quickgelu(x)

    def reference(self, x: Tensor) -> Tensor:
        wide = x.to(compute_dtype(x))
        return (wide * torch.sigmoid(1.702 * wide)).to(x.dtype)
