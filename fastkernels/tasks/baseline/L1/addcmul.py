"""A product added to what was there."""

from __future__ import annotations

from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.addcmul import addcmul
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec

_ROWS = TensorSpec(("...", "d"))


class Addcmul(Op):
    """y = x + tensor1 * tensor2.

    Shapes:  x, tensor1, tensor2, y: [..., d]; tensor2 may also be what broadcasts to them.
    Dtypes:  bf16, fp16 or fp32; product and sum in fp32, rounded once.
    Returns: y. No argument is written to.
    Source:  signature as torch.addcmul.
    """

    spec = OpSpec(
        inputs={"x": _ROWS.strided(), "tensor1": _ROWS.strided(), "tensor2": _ROWS.strided()},
        outputs={"y": _ROWS},
        example_axes={"d": (64, 257, 4099)},
    )

    def forward(self, x: Tensor, tensor1: Tensor, tensor2: Tensor) -> Tensor:
        return self.reference(x, tensor1, tensor2) if uses_reference(x) else addcmul(x, tensor1, tensor2)

    def reference(self, x: Tensor, tensor1: Tensor, tensor2: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        return (x.to(dtype) + tensor1.to(dtype) * tensor2.to(dtype)).to(x.dtype)
