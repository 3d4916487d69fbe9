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
    """y = x / max(|x|, eps), |x| the root of the sum of squares over the last axis; x / sqrt(|x|^2 + eps) where
    is_eps_in_root.

    Shapes:  x, y: [..., d].
    Dtypes:  bf16, fp16 or fp32; computed in fp32 and rounded once.
    Returns: y. No argument is written to.
    Source:  torch.nn.functional.normalize with p = 2 over the last axis; with eps in the root fla's l2norm, which
             Qwen3-Next has (https://github.com/fla-org/flash-linear-attention, fla/modules/l2norm.py).
    """

    spec = OpSpec(
        inputs={"x": _ROWS.strided()},
        outputs={"y": _ROWS},
        examples=({}, {"eps": 1e-6}, {"eps": 1e-6, "is_eps_in_root": True}),
        example_axes={"d": (64, 257, 4099)},
    )

    def __init__(self, eps: float = 1e-12, is_eps_in_root: bool = False) -> None:
        super().__init__()
        self.eps, self.is_eps_in_root = eps, is_eps_in_root

    def forward(self, x: Tensor) -> Tensor:
        return self.reference(x) if uses_reference(x) else l2_norm(x, self.eps, self.is_eps_in_root)

    def reference(self, x: Tensor) -> Tensor:
        wide = x.to(compute_dtype(x))
        if self.is_eps_in_root:
            return (wide * (wide.square().sum(dim=-1, keepdim=True) + self.eps).rsqrt()).to(x.dtype)
        return normalize(wide, dim=-1, eps=self.eps).to(x.dtype)
