"""Batch normalisation by running statistics with an optional SiLU; a program a stretch of one image's channel."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import check_dtypes, tl, triton

_BLOCK = 1024
_ROWS = 8  # of channels-last pixels in one program


@triton.jit
def _affine(mean_ptr, var_ptr, weight_ptr, bias_ptr, channel, mask, eps):
    """(scale, shift): y = x * scale + shift would lose digits, so x is centred first by the caller."""
    var = tl.load(var_ptr + channel, mask=mask, other=1.0).to(tl.float32)
    scale = tl.load(weight_ptr + channel, mask=mask, other=0.0).to(tl.float32) / tl.sqrt(var + eps)
    mean = tl.load(mean_ptr + channel, mask=mask, other=0.0).to(tl.float32)
    return mean, scale, tl.load(bias_ptr + channel, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _planes_kernel(
    x_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, y_ptr, num_features, plane_size, eps,
    SILU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0).to(tl.int64)
    channel = plane % num_features
    mean, scale, bias = _affine(mean_ptr, var_ptr, weight_ptr, bias_ptr, channel, True, eps)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < plane_size
    x = tl.load(x_ptr + plane * plane_size + pixel, mask=mask, other=0.0).to(tl.float32)
    y = (x - mean) * scale + bias
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    tl.store(y_ptr + plane * plane_size + pixel, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _pixels_kernel(
    x_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, y_ptr, num_features, num_pixels, eps,
    SILU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_row = channel < num_features
    mean, scale, bias = _affine(mean_ptr, var_ptr, weight_ptr, bias_ptr, channel, in_row, eps)
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place = pixel[:, None] * num_features + channel[None, :]
    mask = (pixel < num_pixels)[:, None] & in_row[None, :]
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    y = (x - mean[None, :]) * scale[None, :] + bias[None, :]
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=mask)


def batch_norm2d(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, eps: float, has_silu: bool
) -> Tensor:
    """act((x - running_mean) / sqrt(running_var + eps) * weight + bias) in float32, in the layout of x.

    Shapes:  x, returned y: [batch, num_features, height, width], dense or channels last; the rest [num_features].
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("batch_norm2d", x=x, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    batch, num_features, height, width = x.shape
    is_channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    if not is_channels_last:
        x = x.contiguous()
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    parameters = (running_mean, running_var, weight, bias)
    if is_channels_last:
        block = min(256, triton.next_power_of_2(num_features))
        num_pixels = batch * height * width
        grid = (triton.cdiv(num_pixels, _ROWS), triton.cdiv(num_features, block))
        _pixels_kernel[grid](
            x, *parameters, y, num_features, num_pixels, eps, SILU=has_silu, ROWS=_ROWS, BLOCK=block
        )  # fmt: skip
        return y
    plane_size = height * width
    block = min(_BLOCK, triton.next_power_of_2(plane_size))
    grid = (batch * num_features, triton.cdiv(plane_size, block))
    _planes_kernel[grid](x, *parameters, y, num_features, plane_size, eps, SILU=has_silu, BLOCK=block)
    return y
