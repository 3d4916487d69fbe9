"""SwiGLU's activation: a gate, squashed, times its value."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu

from fastkernels.context import uses_reference
from fastkernels.kernels.silu_and_mul import silu_and_mul
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec


class SiluAndMul(Op):
    """y = silu(x[..., :d]) * x[..., d:], with silu(a) = a / (1 + exp(-a)).

    Shapes:  x: [..., 2*d]; y: [..., d].
    Dtypes:  bf16, fp16 or fp32; computed in fp32 and rounded once.
    Returns: y. No argument is written to.
    Errors:  ValueError when the last axis of x is odd or empty.
    Source:  Shazeer 2020 (https://arxiv.org/abs/2002.05202), SwiGLU; signature as vLLM's SiluAndMul.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("...", "2*d")).strided()},
        outputs={"y": TensorSpec(("...", "d"))},
        example_axes={"d": (64, 257, 1, 4099)},
    )

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2 or not x.shape[-1]:
            raise ValueError(f"SiluAndMul splits the last axis in two halves, got x of shape {tuple(x.shape)}.")
        return self.reference(x) if uses_reference(x) else silu_and_mul(x)

    def reference(self, x: Tensor) -> Tensor:
        gate, up = x.to(compute_dtype(x)).chunk(2, dim=-1)
        return (silu(gate) * up).to(x.dtype)
