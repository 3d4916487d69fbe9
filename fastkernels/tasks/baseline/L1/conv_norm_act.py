"""A convolution with the normalisation, the activation and the sum that follow it, all of them arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, silu

from fastkernels.context import uses_reference
from fastkernels.dtypes import whole_float32
from fastkernels.kernels.conv_norm_act import Norm, conv_norm_act
from fastkernels.kernels.depthwise_conv_norm_act import depthwise_conv_norm_act
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec

_NORM = {
    name: TensorSpec(("out_channels",), role=Role.COUPLED)
    for name in ("norm_weight", "norm_bias", "running_mean", "running_var")
}


def _check_activation(activation: str | None) -> None:
    if activation not in (None, "silu"):
        raise ValueError(f"activation is None or 'silu', got {activation!r}.")


def _is_torchs(x: Tensor) -> bool:
    """Whether torch's passes compute it: the definition, or exact products of float32, which libraries do faster."""
    return uses_reference(x) or x.dtype not in (torch.bfloat16, torch.float16)


def _draw_norm(num_channels: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Statistics as of activations behind a SiLU, which keep their size then: no mean, variances below one."""
    noise = torch.rand(2, num_channels, generator=generator)
    affine = 0.2 * torch.randn(2, num_channels, generator=generator)
    return {
        "norm_weight": 1 + affine[0],
        "norm_bias": affine[1],
        "running_mean": 0.6 * noise[0] - 0.3,
        "running_var": 0.2 + 0.3 * noise[1],
    }


def _define(
    x: Tensor, weight: Tensor, norm: Norm, stride: int, groups: int, added: Tensor | None, first: bool
) -> Tensor:
    dtype = compute_dtype(x)
    with whole_float32(x):
        y = conv2d(x.to(dtype), weight.to(dtype), None, stride, weight.shape[-1] // 2, 1, groups)
    scale, bias, mean, var = (t.to(dtype)[:, None, None] for t in norm[:4])
    y = (y - mean) / (var + norm.eps).sqrt() * scale + bias
    if added is not None and first:
        y = y + added.to(dtype)
    y = silu(y) if norm.has_silu else y
    if added is not None and not first:
        y = y + added.to(dtype)
    return y.to(x.dtype)


class ConvNormAct(Op):
    """y = act((weight * x - running_mean) / sqrt(running_var + eps) * norm_weight + norm_bias) + residual.

    * is Conv2d's, of an input that is padded by half of the kernel. residual_first: it is added before the activation.

    Shapes:  x: [batch, in_channels, height, width]; weight: [out_channels, in_channels / groups, kernel_size,
             kernel_size]; norm_weight, norm_bias, running_mean, running_var: [out_channels]; residual, y: [batch,
             out_channels, out_height, out_width].
    Dtypes:  x, weight and residual alike, bf16, fp16 or fp32; summed and normalised in fp32, rounded once.
    Returns: y, in half precisions on a GPU channels last. No argument is written to, nor the statistics.
    Errors:  ValueError when x has other channels, when groups is neither 1 nor all channels, for an even kernel_size,
             or for another activation than "silu".
    Source:  Ioffe & Szegedy 2015 (https://arxiv.org/abs/1502.03167); the numbers of __init__ as torch.nn.Conv2d's.
    """

    spec = OpSpec(
        inputs={
            "x": TensorSpec(("batch", "in_channels", "height", "width")),
            "weight": TensorSpec(("out_channels", "group_channels", "kernel_size", "kernel_size"), role=Role.COUPLED),
            **_NORM,
            "residual": TensorSpec(("batch", "out_channels", "out_height", "out_width")).optional(),
        },
        outputs={"y": TensorSpec(("batch", "out_channels", "out_height", "out_width"))},
        examples=(
            {"in_channels": 16, "out_channels": 24, "kernel_size": 3, "activation": "silu"},
            {"in_channels": 3, "out_channels": 37, "kernel_size": 3, "stride": 2, "eps": 1e-3},
            {"in_channels": 19, "out_channels": 19, "kernel_size": 7, "groups": 19, "activation": "silu",
             "residual_first": True},
            {"in_channels": 53, "out_channels": 41, "activation": "silu"},
        ),
        example_axes={"batch": (2, 1), "height": (8, 9), "width": (36, 7)},
    )  # fmt: skip

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        eps: float = 1e-5,
        activation: str | None = None,
        residual_first: bool = False,
    ) -> None:
        super().__init__()
        _check_activation(activation)
        if groups != 1 and not groups == in_channels == out_channels:
            raise ValueError(f"groups is 1, or {in_channels} channels of x and y each have their own; got {groups}.")
        if kernel_size % 2 == 0:
            raise ValueError(f"ConvNormAct pads by half of an odd kernel_size, got {kernel_size}.")
        self.in_channels, self.out_channels, self.group_channels = in_channels, out_channels, in_channels // groups
        self.kernel_size, self.stride, self.groups = kernel_size, stride, groups
        self.eps, self.activation, self.residual_first = eps, activation, residual_first

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        residual: Tensor | None = None,
    ) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"ConvNormAct takes [batch, {self.in_channels}, height, width], got {tuple(x.shape)}.")
        if _is_torchs(x):
            return self.reference(x, weight, norm_weight, norm_bias, running_mean, running_var, residual)
        norm = Norm(norm_weight, norm_bias, running_mean, running_var, self.eps, self.activation == "silu")
        if self.groups > 1:
            return depthwise_conv_norm_act(x, weight, norm, self.stride, residual, self.residual_first)
        return conv_norm_act([x], weight, norm, self.stride, residual, self.residual_first)

    def reference(
        self,
        x: Tensor,
        weight: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        residual: Tensor | None = None,
    ) -> Tensor:
        norm = Norm(norm_weight, norm_bias, running_mean, running_var, self.eps, self.activation == "silu")
        return _define(x, weight, norm, self.stride, self.groups, residual, self.residual_first)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {f"out_{side}": (sizes[side] - 1) // self.stride + 1 for side in ("height", "width")}

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        """A weight whose products keep their size."""
        shape = (self.out_channels, self.group_channels, self.kernel_size, self.kernel_size)
        weight = torch.randn(shape, generator=generator) / (self.group_channels * self.kernel_size**2) ** 0.5
        return {"weight": weight, **_draw_norm(self.out_channels, generator)}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_bytes = super().cost(inputs, outputs).num_bytes
        return Cost(num_bytes, 2 * outputs["y"].numel() * inputs["weight"][0].numel())


class ConcatConvNormAct(Op):
    """As ConvNormAct of a 1 x 1 kernel and of [x, x2, x3, x4], the channels of one behind those of the other.

    Shapes:  x, x2, x3, x4: [batch, channels of each, height, width]; weight: [out_channels, weight_channels, 1, 1], of
             which columns behind the last given channel are not read; norm_weight, norm_bias, running_mean,
             running_var: [out_channels]; y: [batch, out_channels, height, width].
    Dtypes:  inputs and weight alike, bf16, fp16 or fp32; summed and normalised in fp32, rounded once.
    Returns: y, in half precisions on a GPU channels last. No argument is written to, nor the statistics.
    Errors:  ValueError for another activation than "silu".
    Source:  as ConvNormAct; the sides of a concatenation apart as in Huang et al. 2016
             (https://arxiv.org/abs/1608.06993), where each layer reads all before it.
    """

    spec = OpSpec(
        inputs={
            "x": TensorSpec(("batch", "in_channels", "height", "width")),
            "x2": TensorSpec(("batch", "x2_channels", "height", "width")),
            "weight": TensorSpec(("out_channels", "weight_channels", "1", "1"), role=Role.COUPLED),
            **_NORM,
            "x3": TensorSpec(("batch", "x3_channels", "height", "width")).optional(),
            "x4": TensorSpec(("batch", "x4_channels", "height", "width")).optional(),
        },
        outputs={"y": TensorSpec(("batch", "out_channels", "height", "width"))},
        examples=({"out_channels": 40, "activation": "silu"}, {"out_channels": 23, "eps": 1e-3}),
        example_axes={
            **{"batch": (2, 1), "height": (8, 5), "width": (18, 9)},
            **{"in_channels": (32, 21), "x2_channels": (16, 7), "x3_channels": (16, 30), "x4_channels": (8, 1)},
        },
    )

    def __init__(self, out_channels: int, eps: float = 1e-5, activation: str | None = None) -> None:
        super().__init__()
        _check_activation(activation)
        self.out_channels, self.eps, self.activation = out_channels, eps, activation

    def forward(
        self,
        x: Tensor,
        x2: Tensor,
        weight: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        x3: Tensor | None = None,
        x4: Tensor | None = None,
    ) -> Tensor:
        if _is_torchs(x):
            return self.reference(x, x2, weight, norm_weight, norm_bias, running_mean, running_var, x3, x4)
        norm = Norm(norm_weight, norm_bias, running_mean, running_var, self.eps, self.activation == "silu")
        return conv_norm_act([part for part in (x, x2, x3, x4) if part is not None], weight, norm)

    def reference(
        self,
        x: Tensor,
        x2: Tensor,
        weight: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        x3: Tensor | None = None,
        x4: Tensor | None = None,
    ) -> Tensor:
        whole = torch.cat([part for part in (x, x2, x3, x4) if part is not None], 1)
        norm = Norm(norm_weight, norm_bias, running_mean, running_var, self.eps, self.activation == "silu")
        return _define(whole, weight[:, : whole.shape[1]], norm, 1, 1, None, False)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        names = ("in_channels", "x2_channels", "x3_channels", "x4_channels")
        return {"weight_channels": sum(sizes[name] for name in names)}

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        num = sizes["weight_channels"]
        weight = torch.randn((self.out_channels, num, 1, 1), generator=generator) / num**0.5
        return {"weight": weight, **_draw_norm(self.out_channels, generator)}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """Of the weight those columns that an input stands beside."""
        num = sum(inputs[name].shape[1] for name in ("x", "x2", "x3", "x4") if inputs.get(name) is not None)
        read = {**inputs, "weight": inputs["weight"][:, :num]}
        return Cost(super().cost(read, outputs).num_bytes, 2 * outputs["y"].numel() * num)
