"""The largest number of each window, channels last: a program a tile of pixels by a tile of channels."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import (
    check_dtypes,
    dependent_launch,
    let_dependents_start,
    num_sms,
    tl,
    triton,
    wait_for_dependencies,
)
from fastkernels.kernels.conv_norm_act import by_pixel
from fastkernels.kernels.depthwise_conv_norm_act import CHANNELS, TILES


@triton.jit(do_not_specialize=["num_pixels", "height", "width", "out_height", "out_width", "padding"])
def _max_pool2d_kernel(
    x_ptr, y_ptr, x_stride, num_pixels, num_channels, height, width, out_height, out_width, padding,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    num_tiles = tl.cdiv(num_channels, BLOCK_N)
    first = tl.program_id(0) // num_tiles * BLOCK_M
    channel = tl.program_id(0) % num_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    is_channel = channel < num_channels
    pixel = tl.arange(0, BLOCK_M)
    is_pixel = first + pixel < num_pixels
    plane = out_height * out_width
    first_image = first // plane
    inside = (first + pixel) % plane
    top, left = inside // out_width * STRIDE - padding, inside % out_width * STRIDE - padding
    x_ptr += first_image.to(tl.int64) * (height * width) * x_stride
    origin = (((first + pixel) // plane - first_image) * height + top) * width + left
    most = tl.full([BLOCK_M, BLOCK_N], float("-inf"), dtype=tl.float32)  # as triton compares bf16
    for down in range(KERNEL):
        is_row = is_pixel & (top + down >= 0) & (top + down < height)
        for right in tl.static_range(KERNEL):
            is_inside = is_row & (left + right >= 0) & (left + right < width)
            place = ((origin + down * width + right) * x_stride)[:, None] + channel[None, :]
            x = tl.load(x_ptr + place, mask=is_inside[:, None] & is_channel[None, :], other=float("-inf"))
            most = tl.maximum(most, x.to(tl.float32), propagate_nan=tl.PropagateNan.ALL)
    y_ptr += first.to(tl.int64) * num_channels
    mask = is_pixel[:, None] & is_channel[None, :]
    tl.store(y_ptr + (pixel * num_channels)[:, None] + channel[None, :], most.to(y_ptr.dtype.element_ty), mask=mask)


def max_pool2d(x: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
    """The largest number of each kernel_size x kernel_size window; NaN where one is.

    Shapes:  x: [batch, num_channels, height, width], channels last; y: [batch, num_channels, out_height, out_width].
    Returns: y, channels last.
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("max_pool2d", x=x)
    x, step = by_pixel(x)
    batch, num_channels, height, width = x.shape
    out_height, out_width = ((side + 2 * padding - kernel_size) // stride + 1 for side in (height, width))
    shape = (batch, num_channels, out_height, out_width)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if y.numel() == 0:
        return y
    num_pixels = batch * out_height * out_width
    block_n = min(CHANNELS, max(8, triton.next_power_of_2(num_channels)))
    num_tiles = triton.cdiv(num_channels, block_n)
    block_m, num_warps = TILES[triton.cdiv(num_pixels, TILES[0][0]) * num_tiles < num_sms(x.device)]
    _max_pool2d_kernel[(triton.cdiv(num_pixels, block_m) * num_tiles,)](
        x, y, step, num_pixels, num_channels, height, width, out_height, out_width, padding,
        KERNEL=kernel_size, STRIDE=stride, BLOCK_M=block_m, BLOCK_N=block_n,
        num_warps=num_warps, **dependent_launch(x.device),
    )  # fmt: skip
    return y
