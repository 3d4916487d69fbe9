"""A convolution with its normalisation, activation and residual, channels last: products of a tile of pixels by a tile
of output channels, the window's pixels gathered as they are multiplied (implicit GEMM).

Inputs whose channels follow one another are read where they lie, each by its own stride from pixel to pixel.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastkernels.errors import UnsupportedError
from fastkernels.kernels.backend import (
    check_dtypes,
    dependent_launch,
    let_dependents_start,
    num_sms,
    tl,
    triton,
    wait_for_dependencies,
)

MOST_PARTS = 4
FEW_INPUTS = 64
"""Numbers of a window up to which it is gathered at once, number by number: an image's three channels."""

_STRETCH = 64
"""Pixels of a row that such a program takes: rows of YOLOv10's first convolution have 320."""

_TILES = ((128, 64), (64, 64), (64, 32), (32, 32))
"""Pixels and output channels, the largest first. 128 x 128 needs 195 registers in each of 256 threads, one program a
multiprocessor, which waits where there are but a few steps."""

_MOST_REGISTERS = 168
"""Three programs of 128 threads a multiprocessor, as many as the largest tile's shared memory allows."""

_MOST_PADDING = 1.25
"""Products that a step may make for each that is wanted: wider steps are fewer, and those of zeros are for nothing."""

RESIDUAL_NONE, RESIDUAL_BEFORE, RESIDUAL_AFTER = 0, 1, 2
"""Where the residual is added: nowhere, before the activation, after it."""


class ConvTile(NamedTuple):
    """Pixels and output channels of a program, channels and taps of a step of it, and how it is compiled."""

    block_m: int
    block_n: int
    block_c: int
    taps: int
    num_warps: int
    num_stages: int


class Norm(NamedTuple):
    """(y - mean) / sqrt(var + eps) * weight + bias, a number of each a channel; then SiLU if asked."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    eps: float
    has_silu: bool


@triton.jit
def norm_of(weight_ptr, bias_ptr, mean_ptr, var_ptr, channel, mask, eps):
    """(mean, scale, bias) of some channels."""
    var = tl.load(var_ptr + channel, mask=mask, other=1.0).to(tl.float32)
    scale = tl.load(weight_ptr + channel, mask=mask, other=0.0).to(tl.float32) / tl.sqrt(var + eps)
    mean = tl.load(mean_ptr + channel, mask=mask, other=0.0).to(tl.float32)
    return mean, scale, tl.load(bias_ptr + channel, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def finish(
    acc, mean, scale, bias, residual_ptr, residual_stride, y_ptr, num_channels, first, row, channel, mask,
    SILU: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Normalises, adds, activates and stores a tile of sums; row: of pixels behind the first."""
    y = (acc - mean[None, :]) * scale[None, :] + bias[None, :]
    if RESIDUAL != 0:
        residual_ptr += first.to(tl.int64) * residual_stride
        added = tl.load(residual_ptr + (row * residual_stride)[:, None] + channel[None, :], mask=mask, other=0.0)
    if RESIDUAL == 1:
        y += added.to(tl.float32)
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    if RESIDUAL == 2:
        y += added.to(tl.float32)
    y_ptr += first.to(tl.int64) * num_channels
    tl.store(y_ptr + (row * num_channels)[:, None] + channel[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def window_of(first, row, height, width, out_height, out_width, KERNEL: tl.constexpr, STRIDE: tl.constexpr):
    """(the first pixel's image, and of each pixel: its image behind that one, its window's first row and column)."""
    plane = out_height * out_width
    first_image = first // plane
    image = (first + row) // plane - first_image
    inside = (first + row) % plane
    return first_image, image, inside // out_width * STRIDE - KERNEL // 2, inside % out_width * STRIDE - KERNEL // 2


@triton.jit
def _add_part(
    acc, x_ptr, x_stride, num_channels, w_ptr, w_row, w_channels, first_image, origin, top, left, is_pixel, height,
    width, KERNEL: tl.constexpr, BLOCK_C: tl.constexpr, TAPS: tl.constexpr, IS_EVEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The products with one input's channels, of which w_ptr has the first one's weights.

    origin: the pixel of x at each window's first tap, which may lie outside of the image.
    """
    x_ptr += first_image.to(tl.int64) * (height * width) * x_stride
    num_blocks = tl.cdiv(num_channels, BLOCK_C)
    num_steps = num_blocks * ((KERNEL * KERNEL + TAPS - 1) // TAPS)
    k = tl.arange(0, TAPS * BLOCK_C)
    for step in tl.range(0, num_steps, num_stages=STAGES):
        if TAPS == 1:
            tap = step // num_blocks if KERNEL > 1 else 0
            channel = (step % num_blocks if KERNEL > 1 else step) * BLOCK_C + k
            down, right = tap // KERNEL, tap % KERNEL
            place = (origin + (down * width + right)) * x_stride
            mask = is_pixel
            if KERNEL > 1:
                row, column = top + down, left + right
                mask = is_pixel & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            mask = mask[:, None]
            place = place[:, None] + channel[None, :]
        else:  # channels are few: a step is of several taps, all of their channels
            tap = step * TAPS + k // BLOCK_C
            channel = k % BLOCK_C
            down, right = tap // KERNEL, tap % KERNEL
            row, column = top[:, None] + down[None, :], left[:, None] + right[None, :]
            mask = is_pixel[:, None] & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = (origin[:, None] + (down * width + right)[None, :]) * x_stride + channel[None, :]
        w_place = (tap * w_channels + channel)[:, None] + w_row[None, :]
        if IS_EVEN:
            x = tl.load(x_ptr + place, mask=mask, other=0.0)
            w = tl.load(w_ptr + w_place)
        else:
            is_input = channel < num_channels
            if TAPS > 1:
                is_input = is_input & (tap < KERNEL * KERNEL)
            x = tl.load(x_ptr + place, mask=mask & is_input[None, :], other=0.0)
            w = tl.load(w_ptr + w_place, mask=is_input[:, None], other=0.0)
        acc = tl.dot(x, w, acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=["num_pixels", "height", "width", "out_height", "out_width"])
def _conv_norm_act_kernel(
    x_ptr, x2_ptr, x3_ptr, x4_ptr, w_ptr, weight_ptr, bias_ptr, mean_ptr, var_ptr, residual_ptr, y_ptr,
    channels, channels_2, channels_3, channels_4, stride, stride_2, stride_3, stride_4, w_channels, residual_stride,
    num_pixels, num_outputs, height, width, out_height, out_width, eps,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PARTS: tl.constexpr, SILU: tl.constexpr, RESIDUAL: tl.constexpr,
    IS_EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, TAPS: tl.constexpr,
    STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    num_tiles = tl.cdiv(num_outputs, BLOCK_N)
    first = tl.program_id(0) // num_tiles * BLOCK_M
    output = tl.program_id(0) % num_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    is_output = output < num_outputs
    pixel = tl.arange(0, BLOCK_M)
    is_pixel = first + pixel < num_pixels
    if KERNEL == 1 and STRIDE == 1:  # pixels of y are those of x: one image of one column
        height, width = 1, 1
        first_image, image = first, pixel
        top, left = tl.zeros_like(pixel), tl.zeros_like(pixel)
    else:
        first_image, image, top, left = window_of(first, pixel, height, width, out_height, out_width, KERNEL, STRIDE)
    origin = (image * height + top) * width + left
    w_row = tl.minimum(output, num_outputs - 1) * (KERNEL * KERNEL * w_channels)
    if BLOCK_M < 64:  # few programs wait for each other's loads; of large ones registers are dear
        mean, scale, bias = norm_of(weight_ptr, bias_ptr, mean_ptr, var_ptr, output, is_output, eps)
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    acc = _add_part(
        acc, x_ptr, stride, channels, w_ptr, w_row, w_channels, first_image, origin, top, left, is_pixel, height,
        width, KERNEL, BLOCK_C, TAPS, IS_EVEN, STAGES,
    )  # fmt: skip
    if PARTS > 1:
        w_ptr += channels
        acc = _add_part(
            acc, x2_ptr, stride_2, channels_2, w_ptr, w_row, w_channels, first_image, origin, top, left, is_pixel,
            height, width, KERNEL, BLOCK_C, TAPS, IS_EVEN, STAGES,
        )  # fmt: skip
    if PARTS > 2:
        w_ptr += channels_2
        acc = _add_part(
            acc, x3_ptr, stride_3, channels_3, w_ptr, w_row, w_channels, first_image, origin, top, left, is_pixel,
            height, width, KERNEL, BLOCK_C, TAPS, IS_EVEN, STAGES,
        )  # fmt: skip
    if PARTS > 3:
        w_ptr += channels_3
        acc = _add_part(
            acc, x4_ptr, stride_4, channels_4, w_ptr, w_row, w_channels, first_image, origin, top, left, is_pixel,
            height, width, KERNEL, BLOCK_C, TAPS, IS_EVEN, STAGES,
        )  # fmt: skip
    if BLOCK_M >= 64:
        mean, scale, bias = norm_of(weight_ptr, bias_ptr, mean_ptr, var_ptr, output, is_output, eps)
    finish(
        acc, mean, scale, bias, residual_ptr, residual_stride, y_ptr, num_outputs, first, pixel, output,
        is_pixel[:, None] & is_output[None, :], SILU, RESIDUAL,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "image_step", "channel_step", "row_step", "column_step", "height", "width", "out_height", "out_width",
    ]
)  # fmt: skip
def _few_channels_kernel(
    x_ptr, w_ptr, weight_ptr, bias_ptr, mean_ptr, var_ptr, residual_ptr, y_ptr,
    image_step, channel_step, row_step, column_step, residual_stride, num_outputs,
    height, width, out_height, out_width, eps,
    CHANNELS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, SILU: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """All numbers of the windows of a stretch of one row at once, of an image laid out in any way. Neighbours in memory
    are pixels of a row: a warp reads those of one tap."""
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    num_tiles = tl.cdiv(num_outputs, BLOCK_N)
    num_stretches = tl.cdiv(out_width, BLOCK_M)
    line = tl.program_id(0) // (num_tiles * num_stretches)  # of all images
    stretch = tl.program_id(0) // num_tiles % num_stretches * BLOCK_M
    output = tl.program_id(0) % num_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    is_output = output < num_outputs
    NUM: tl.constexpr = KERNEL * KERNEL * CHANNELS
    k = tl.arange(0, BLOCK_K)
    w_place = k[:, None] + (tl.minimum(output, num_outputs - 1) * NUM)[None, :]
    w = tl.load(w_ptr + w_place, mask=(k < NUM)[:, None], other=0.0)
    mean, scale, bias = norm_of(weight_ptr, bias_ptr, mean_ptr, var_ptr, output, is_output, eps)
    pixel = tl.arange(0, BLOCK_M)
    row = line % out_height * STRIDE - KERNEL // 2 + k // CHANNELS // KERNEL
    column = (stretch + pixel)[:, None] * STRIDE + (k // CHANNELS % KERNEL - KERNEL // 2)[None, :]
    is_line = (k < NUM) & (row >= 0) & (row < height)
    mask = is_line[None, :] & (column >= 0) & (column < width)
    place = (k % CHANNELS * channel_step + row * row_step)[None, :] + column * column_step
    x_ptr += (line // out_height).to(tl.int64) * image_step
    # No step is known to be 1, so that lanes go along the first axis, which is why that is the pixels'.
    x = tl.load(x_ptr + place, mask=mask, other=0.0)
    acc = tl.dot(x, w, input_precision="ieee")
    is_pixel = stretch + pixel < out_width
    finish(
        acc, mean, scale, bias, residual_ptr, residual_stride, y_ptr, num_outputs, line * out_width + stretch, pixel,
        output, is_pixel[:, None] & is_output[None, :], SILU, RESIDUAL,
    )  # fmt: skip


def conv_tile(num_pixels: int, num_outputs: int, channels: Sequence[int], kernel_size: int, num_sms: int) -> ConvTile:
    """The largest tile of which there are as many as multiprocessors; of small images the smallest."""
    widest = max(16, triton.next_power_of_2(num_outputs))
    block_m, block_n = _TILES[-1]
    for block_m, block_n in _TILES:
        if triton.cdiv(num_pixels, block_m) * triton.cdiv(num_outputs, min(block_n, widest)) >= num_sms:
            break
    block_c = 64
    while block_c > 16 and sum(-(-c // block_c) * block_c for c in channels) > _MOST_PADDING * sum(channels):
        block_c //= 2
    is_one_block = len(channels) == 1 and channels[0] <= block_c
    taps = 64 // block_c if kernel_size > 1 and is_one_block else 1
    block_n = min(block_n, widest)
    return ConvTile(block_m, block_n, block_c, taps, 4, 4 if block_m < 64 else 3)


def by_pixel(x: Tensor) -> tuple[Tensor, int]:
    """(x, how many numbers its pixels lie apart), copied where a pixel's channels do not lie side by side."""
    batch, channels, height, width = x.shape
    image, channel, row, column = x.stride()
    step = column if width > 1 else row if height > 1 else image if batch > 1 else channels
    is_side_by_side = (
        (channels == 1 or channel == 1)
        and (height == 1 or row == width * step)
        and (batch == 1 or image == height * width * step)
    )
    return (x, step) if is_side_by_side else (x.contiguous(memory_format=torch.channels_last), channels)


def packed_weight(weight: Tensor, is_depthwise: bool) -> Tensor:
    """The same weights as the kernels read them, copied where they do not lie so: a tap's input channels side by side,
    or, each channel having a window of its own, a tap's channels."""
    if not is_depthwise:
        return weight.contiguous(memory_format=torch.channels_last)
    return weight[:, 0].permute(1, 2, 0).contiguous().permute(2, 0, 1)[:, None]


def out_image(x: Tensor, num_outputs: int, kernel_size: int, stride: int) -> Tensor:
    """y, channels last, of a window that is padded by half of itself."""
    height, width = ((side + 2 * (kernel_size // 2) - kernel_size) // stride + 1 for side in x.shape[2:])
    shape = (x.shape[0], num_outputs, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def residual_of(residual: Tensor | None, y: Tensor, is_first: bool) -> tuple[Tensor, int, int]:
    """(residual or what stands in for it, its pixels' distance, where it is added)."""
    if residual is None:
        return y, y.shape[1], RESIDUAL_NONE
    return *by_pixel(residual), RESIDUAL_BEFORE if is_first else RESIDUAL_AFTER


def conv_norm_act(
    parts: Sequence[Tensor],
    weight: Tensor,
    norm: Norm,
    stride: int = 1,
    residual: Tensor | None = None,
    residual_is_first: bool = False,
    tile: ConvTile | None = None,
) -> Tensor:
    """act(norm(conv(parts side by side))) + residual, summed in fp32 and rounded once; the window is padded by half.

    residual_is_first: added before the activation. tile: else what conv_tile chooses.

    Shapes:  parts, up to MOST_PARTS: [batch, channels of each, height, width]; weight: [num_outputs, channels of all
             or more, kernel_size, kernel_size]; of norm: [num_outputs]; residual and returned y: [batch, num_outputs,
             out_height, out_width].
    Dtypes:  bf16, fp16 or fp32, parts and weight alike.
    Returns: y, channels last.
    Errors:  UnsupportedError for another dtype, or more parts.
    """
    check_dtypes("conv_norm_act", x=parts[0], weight=weight, norm=norm.weight, residual=residual)
    if not 1 <= len(parts) <= MOST_PARTS:
        raise UnsupportedError(f"conv_norm_act takes 1 to {MOST_PARTS} inputs side by side, got {len(parts)}.")
    x, (num_outputs, w_channels, kernel_size, _) = parts[0], weight.shape
    y = out_image(x, num_outputs, kernel_size, stride)
    if y.numel() == 0:
        return y
    added, added_stride, place = residual_of(residual, y, residual_is_first)
    (_, channels, height, width), (batch, _, out_height, out_width) = x.shape, y.shape
    num_pixels = batch * out_height * out_width
    numbers = (num_outputs, height, width, out_height, out_width, norm.eps)
    w = packed_weight(weight, is_depthwise=False)
    options = {"KERNEL": kernel_size, "STRIDE": stride, "SILU": norm.has_silu, "RESIDUAL": place}
    options |= dependent_launch(x.device)
    if tile is None and len(parts) == 1 and channels < 8 and channels * kernel_size**2 <= FEW_INPUTS:
        block_n = min(64, max(16, triton.next_power_of_2(num_outputs)))
        num_programs = batch * out_height * triton.cdiv(out_width, _STRETCH) * triton.cdiv(num_outputs, block_n)
        _few_channels_kernel[(num_programs,)](
            x, w[:, :channels].contiguous(memory_format=torch.channels_last), *norm[:4], added, y, *x.stride(),
            added_stride, *numbers, CHANNELS=channels, BLOCK_M=_STRETCH, BLOCK_N=block_n,
            BLOCK_K=max(16, triton.next_power_of_2(channels * kernel_size**2)), num_warps=4, **options,
        )  # fmt: skip
        return y
    widths = [part.shape[1] for part in parts]
    tile = tile or conv_tile(num_pixels, num_outputs, widths, kernel_size, num_sms(x.device))
    inputs, steps = zip(*map(by_pixel, parts), strict=True)
    unused = MOST_PARTS - len(parts)
    is_even = all(c % tile.block_c == 0 for c in widths) and kernel_size**2 % tile.taps == 0
    grid = triton.cdiv(num_pixels, tile.block_m) * triton.cdiv(num_outputs, tile.block_n)
    _conv_norm_act_kernel[(grid,)](
        *inputs, *[inputs[0]] * unused, w, *norm[:4], added, y, *widths, *[widths[0]] * unused,
        *steps, *[steps[0]] * unused, w_channels, added_stride, num_pixels, *numbers,
        PARTS=len(parts), IS_EVEN=is_even, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_C=tile.block_c,
        TAPS=tile.taps, STAGES=tile.num_stages, num_warps=tile.num_warps,
        maxnreg=_MOST_REGISTERS, **options,
    )  # fmt: skip
    return y
