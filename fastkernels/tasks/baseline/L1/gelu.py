"""Gaussian error linear unit."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import gelu

from fastkernels.context import uses_reference
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec

_ROWS = TensorSpec(("...", "d"))


class GELU(Op):
    """y = x * Phi(x), Phi the normal distribution; approximate "tanh": 0.5 * x * (1 + tanh(0.798 * (x + 0.0447 x^3))).

    Shapes:  x, y: [..., d].
    Dtypes:  bf16, fp16 or fp32; computed in fp32 and rounded once.
    Returns: y. No argument is written to.
    Errors:  ValueError for another approximation.
    Source:  Hendrycks & Gimpel 2016 (https://arxiv.org/abs/1606.08415); signature as torch.nn.GELU.
    """

    spec = OpSpec(
        inputs={"x": _ROWS.strided()},
        outputs={"y": _ROWS},
        examples=({}, {"approximate": "tanh"}),
        example_axes={"d": (64, 257, 1, 4099)},
    )

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate is 'none' or 'tanh', got {approximate!r}.")
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return self.reference(x) if uses_reference(x) else gelu(x, approximate=self.approximate)

    def reference(self, x: Tensor) -> Tensor:
        return gelu(x.to(compute_dtype(x)), approximate=self.approximate).to(x.dtype)
