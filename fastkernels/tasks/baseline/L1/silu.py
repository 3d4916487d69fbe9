"""Sigmoid linear unit."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu

from fastkernels.context import uses_reference
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec

_ROWS = TensorSpec(("...", "d"))


class SiLU(Op):
    """y = x / (1 + exp(-x)).

    Shapes:  x, y: [..., d].
    Dtypes:  bf16, fp16 or fp32; computed in fp32 and rounded once.
    Returns: y. No argument is written to.
    Source:  Elfwing et al. 2017 (https://arxiv.org/abs/1702.03118); signature as torch.nn.SiLU.
    """

    spec = OpSpec(inputs={"x": _ROWS.strided()}, outputs={"y": _ROWS}, example_axes={"d": (64, 257, 1, 4099)})

    def forward(self, x: Tensor) -> Tensor:
        return self.reference(x) if uses_reference(x) else silu(x)

    def reference(self, x: Tensor) -> Tensor:
        return silu(x.to(compute_dtype(x))).to(x.dtype)
