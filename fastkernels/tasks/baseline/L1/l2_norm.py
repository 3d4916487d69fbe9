"""Vectors of length one."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from fastkernels.context import uses_reference
from fastkernels.kernels.l2_norm import l2_norm
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec

_ROWS = TensorSpec(("...", "d"))


class L2Norm(Op):
    """y = x / max(|x|, eps), |x| the root of the sum of squares over the last axis.

    Shapes:  x, y: [..., d].
    Dtypes:  bf16, fp16 or fp32; computed in fp32 and rounded once.
    Returns: y. No argument is written to.
    Source:  signature as torch.nn.functional.normalize with p = 2 over the last axis.
    """

    spec = OpSpec(
        inputs={"x": _ROWS.strided()},
        outputs={"y": _ROWS},
        examples=({}, {"eps": 1e-6}),
        example_axes={"d": (64, 257)},
    )

    def __init__(self, eps: float = 1e-12) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.reference(x) if uses_reference(x) else l2_norm(x, self.eps)

    def reference(self, x: Tensor) -> Tensor:
        return normalize(x.to(compute_dtype(x)), dim=-1, eps=self.eps).to(x.dtype)
