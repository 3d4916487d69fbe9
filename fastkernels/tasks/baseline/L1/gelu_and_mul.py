"""GEGLU's activation: a gate, squashed, times its value."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import gelu

from fastkernels.context import uses_reference
from fastkernels.kernels.gelu_and_mul import gelu_and_mul
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec


class GeluAndMul(Op):
    """y = gelu(x[..., :d]) * x[..., d:], or with the halves exchanged when the gate is the last one.

    Shapes:  x: [..., 2*d]; y: [..., d].
    Dtypes:  bf16, fp16 or fp32; computed in fp32 and rounded once.
    Returns: y. No argument is written to.
    Errors:  ValueError for another approximation, or when the last axis of x is odd or empty.
    Source:  Shazeer 2020 (https://arxiv.org/abs/2002.05202), GEGLU; signature as vLLM's GeluAndMul.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("...", "2*d")).strided()},
        outputs={"y": TensorSpec(("...", "d"))},
        examples=({}, {"approximate": "tanh"}, {"gate_is_last": True}),
        example_axes={"d": (64, 257, 1, 4099)},
    )

    def __init__(self, approximate: str = "none", gate_is_last: bool = False) -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate is 'none' or 'tanh', got {approximate!r}.")
        self.approximate, self.gate_is_last = approximate, gate_is_last

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2 or not x.shape[-1]:
            raise ValueError(f"GeluAndMul splits the last axis in two halves, got x of shape {tuple(x.shape)}.")
        return self.reference(x) if uses_reference(x) else gelu_and_mul(x, self.approximate, self.gate_is_last)

    def reference(self, x: Tensor) -> Tensor:
        gate, up = x.to(compute_dtype(x)).chunk(2, dim=-1)
        if self.gate_is_last:
            gate, up = up, gate
        return (gelu(gate, approximate=self.approximate) * up).to(x.dtype)
