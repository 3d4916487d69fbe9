"""A depthwise convolution with its normalisation, activation and residual, channels last: a program a tile of pixels by
a tile of channels, tap after tap."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

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
from fastkernels.kernels.conv_norm_act import (
    Norm,
    by_pixel,
    finish,
    norm_of,
    out_image,
    packed_weight,
    residual_of,
    window_of,
)

CHANNELS = 64
"""A line of the cache."""

TILES = ((32, 4), (8, 2))
"""Pixels of a program and its warps: many, or few where there would be less programs than multiprocessors."""


@triton.jit
def _add_row(
    acc, x_ptr, w_ptr, x_stride, num_channels, origin, left, is_row, width, channel, is_channel, KERNEL: tl.constexpr
):  # fmt: skip
    """The taps of one row of the window."""
    for right in tl.static_range(KERNEL):
        is_inside = is_row & (left + right >= 0) & (left + right < width)
        place = ((origin + right) * x_stride)[:, None] + channel[None, :]
        x = tl.load(x_ptr + place, mask=is_inside[:, None] & is_channel[None, :], other=0.0)
        w = tl.load(w_ptr + right * num_channels + channel, mask=is_channel, other=0.0)
        acc += x.to(tl.float32) * w.to(tl.float32)[None, :]
    return acc


@triton.jit(do_not_specialize=["num_pixels", "height", "width", "out_height", "out_width"])
def _depthwise_kernel(
    x_ptr, w_ptr, weight_ptr, bias_ptr, mean_ptr, var_ptr, residual_ptr, y_ptr,
    x_stride, residual_stride, num_pixels, num_channels, height, width, out_height, out_width, eps,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, SILU: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    num_tiles = tl.cdiv(num_channels, BLOCK_N)
    first = tl.program_id(0) // num_tiles * BLOCK_M
    channel = tl.program_id(0) % num_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    is_channel = channel < num_channels
    pixel = tl.arange(0, BLOCK_M)
    is_pixel = first + pixel < num_pixels
    first_image, image, top, left = window_of(first, pixel, height, width, out_height, out_width, KERNEL, STRIDE)
    x_ptr += first_image.to(tl.int64) * (height * width) * x_stride
    origin = (image * height + top) * width + left
    mean, scale, bias = norm_of(weight_ptr, bias_ptr, mean_ptr, var_ptr, channel, is_channel, eps)
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    if KERNEL <= 3:
        for down in tl.static_range(KERNEL):
            is_row = is_pixel & (top + down >= 0) & (top + down < height)
            acc = _add_row(
                acc, x_ptr, w_ptr + down * KERNEL * num_channels, x_stride, num_channels, origin + down * width, left,
                is_row, width, channel, is_channel, KERNEL,
            )  # fmt: skip
    else:
        for down in range(KERNEL):
            is_row = is_pixel & (top + down >= 0) & (top + down < height)
            acc = _add_row(
                acc, x_ptr, w_ptr + down * KERNEL * num_channels, x_stride, num_channels, origin + down * width, left,
                is_row, width, channel, is_channel, KERNEL,
            )  # fmt: skip
    finish(
        acc, mean, scale, bias, residual_ptr, residual_stride, y_ptr, num_channels, first, pixel, channel,
        is_pixel[:, None] & is_channel[None, :], SILU, RESIDUAL,
    )  # fmt: skip


def depthwise_conv_norm_act(
    x: Tensor,
    weight: Tensor,
    norm: Norm,
    stride: int = 1,
    residual: Tensor | None = None,
    residual_is_first: bool = False,
    tile: tuple[int, int] | None = None,
) -> Tensor:
    """act(norm(conv(x))) + residual, a window of its own for each channel, padded by half; summed in fp32.

    tile: pixels of a program and its warps.

    Shapes:  x: [batch, num_channels, height, width]; weight: [num_channels, 1, kernel_size, kernel_size]; of norm:
             [num_channels]; residual and returned y: [batch, num_channels, out_height, out_width].
    Dtypes:  bf16, fp16 or fp32.
    Returns: y, channels last.
    Errors:  UnsupportedError for another dtype.
    """
    check_dtypes("depthwise_conv_norm_act", x=x, weight=weight, norm=norm.weight, residual=residual)
    num_channels, kernel_size = weight.shape[0], weight.shape[-1]
    y = out_image(x, num_channels, kernel_size, stride)
    if y.numel() == 0:
        return y
    added, added_stride, place = residual_of(residual, y, residual_is_first)
    x, step = by_pixel(x)
    batch, _, out_height, out_width = y.shape
    num_pixels = batch * out_height * out_width
    block_n = min(CHANNELS, max(8, triton.next_power_of_2(num_channels)))
    num_tiles = triton.cdiv(num_channels, block_n)
    if tile is None:
        tile = TILES[triton.cdiv(num_pixels, TILES[0][0]) * num_tiles < num_sms(x.device)]
    block_m, num_warps = tile
    _depthwise_kernel[(triton.cdiv(num_pixels, block_m) * num_tiles,)](
        x, packed_weight(weight, is_depthwise=True), *norm[:4], added, y, step, added_stride, num_pixels, num_channels,
        *x.shape[2:], out_height, out_width, norm.eps,
        KERNEL=kernel_size, STRIDE=stride, SILU=norm.has_silu, RESIDUAL=place, BLOCK_M=block_m, BLOCK_N=block_n,
        num_warps=num_warps, **dependent_launch(x.device),
    )  # fmt: skip
    return y
