"""Rectified linear unit."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import relu

from fastkernels.op import Op
from fastkernels.spec import Compare, OpSpec, TensorSpec

_ROWS = TensorSpec(("...", "d"))


class ReLU(Op):
    """y = max(x, 0).

    Shapes:  x, y: [..., d].
    Dtypes:  bf16, fp16 or fp32; exact.
    Returns: y. No argument is written to.
    Source:  Nair & Hinton 2010; signature as torch.nn.ReLU.
    """

    spec = OpSpec(
        inputs={"x": _ROWS.strided()},
        outputs={"y": TensorSpec(("...", "d"), compare=Compare.EXACT)},
        example_axes={"d": (64, 257, 1, 4099)},
    )

    def forward(self, x: Tensor) -> Tensor:
        return self.reference(x)

    def reference(self, x: Tensor) -> Tensor:
        return relu(x)
