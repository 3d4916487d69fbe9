"""What ends a residual block: two images and the biases of the convolutions that made them, in one sum."""

from __future__ import annotations

from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.bias_add_residual import bias_add_residual
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec

_IMAGE = TensorSpec(("batch", "num_channels", "height", "width"))
_BIAS = TensorSpec(("num_channels",))


class BiasAddResidual(Op):
    """y = x + residual + bias (+ residual_bias), a bias being one number for each channel.

    Shapes:  x, residual, y: [batch, num_channels, height, width]; bias, residual_bias: [num_channels].
    Dtypes:  bf16, fp16 or fp32; summed in fp32 and rounded once.
    Returns: y, laid out as x. No argument is written to.
    Errors:  ValueError when residual has another shape than x, or a bias other channels.
    Source:  the sums at the end of diffusers' ResnetBlock2D, named as the fused sums of language models are.
    """

    spec = OpSpec(
        inputs={"x": _IMAGE, "residual": _IMAGE, "bias": _BIAS, "residual_bias": _BIAS.optional()},
        outputs={"y": _IMAGE},
        example_axes={"batch": (2, 1), "num_channels": (24, 7), "height": (9, 16), "width": (7, 16)},
    )

    def forward(self, x: Tensor, residual: Tensor, bias: Tensor, residual_bias: Tensor | None = None) -> Tensor:
        biases = [b for b in (bias, residual_bias) if b is not None]
        if x.dim() < 2 or residual.shape != x.shape or any(b.shape != x.shape[1:2] for b in biases):
            raise ValueError(
                f"BiasAddResidual takes x and residual alike and a number for each channel, got {tuple(x.shape)}, "
                f"{tuple(residual.shape)} and {', '.join(str(tuple(b.shape)) for b in biases)}."
            )
        if uses_reference(x):
            return self.reference(x, residual, bias, residual_bias)
        return bias_add_residual(x, residual, bias, residual_bias)

    def reference(self, x: Tensor, residual: Tensor, bias: Tensor, residual_bias: Tensor | None = None) -> Tensor:
        dtype = compute_dtype(x)
        shift = bias.to(dtype) if residual_bias is None else bias.to(dtype) + residual_bias.to(dtype)
        y = x.to(dtype) + residual.to(dtype) + shift.unflatten(0, (-1, *[1] * (x.dim() - 2)))
        return y.to(x.dtype)
