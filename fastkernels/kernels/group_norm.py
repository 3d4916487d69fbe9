"""GroupNorm with an optional SiLU: moments of parts of each group, then every element once more."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import (
    check_dtypes,
    dependent_launch,
    let_dependents_start,
    tl,
    triton,
    wait_for_dependencies,
)

_BLOCK = 1024
_BLOCKS_A_PART = 8
"""A part is what one program reads: enough of them to fill the device, few enough to be summed again by each."""

_MOST_PARTS = 256


@triton.jit
def _place(i, num_positions, group_channels, num_channels, group, IS_CHANNELS_LAST: tl.constexpr):
    """Of the i-th element of a group in its image: its channel in the group, and its place in the image."""
    if IS_CHANNELS_LAST:
        channel = i % group_channels
        place = (i // group_channels) * num_channels + group * group_channels + channel
    else:
        channel = i // num_positions
        place = group * group_channels * num_positions + i
    return channel, place


@triton.jit
def _moments_kernel(
    x_ptr, mean_ptr, square_ptr, num_positions, group_channels, num_channels, num_groups, num_parts, part_size,
    IS_CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared distances from it of one part of one group."""
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    group = row % num_groups
    size = num_positions * group_channels
    base = x_ptr + (row // num_groups) * num_channels * num_positions
    first = part * part_size
    count = 0.0
    mean = 0.0
    square = 0.0
    for start in range(0, part_size, BLOCK):
        i = first + start + tl.arange(0, BLOCK)
        mask = (i < size) & (i < first + part_size)
        _, place = _place(i.to(tl.int64), num_positions, group_channels, num_channels, group, IS_CHANNELS_LAST)
        x = tl.load(base + place, mask=mask, other=0.0).to(tl.float32)
        some = tl.sum(mask.to(tl.float32), axis=0)
        block_mean = tl.sum(x, axis=0) / tl.maximum(some, 1.0)
        centered = tl.where(mask, x - block_mean, 0.0)
        both = tl.maximum(count + some, 1.0)
        delta = block_mean - mean
        square += tl.sum(centered * centered, axis=0) + delta * delta * (count * some / both)
        mean += delta * (some / both)
        count += some
    tl.store(mean_ptr + row * num_parts + part, mean)
    tl.store(square_ptr + row * num_parts + part, square)


@triton.jit
def _normalize_kernel(
    x_ptr, weight_ptr, bias_ptr, mean_ptr, square_ptr, y_ptr, num_positions, group_channels, num_channels, num_groups,
    num_parts, part_size, eps,
    IS_AFFINE: tl.constexpr, HAS_SILU: tl.constexpr, IS_CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
    PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    group = row % num_groups
    size = num_positions * group_channels
    parts = tl.arange(0, PARTS)
    counts = tl.minimum(tl.maximum(size - parts * part_size, 0), part_size).to(tl.float32)
    means = tl.load(mean_ptr + row * num_parts + parts, mask=parts < num_parts, other=0.0)
    squares = tl.load(square_ptr + row * num_parts + parts, mask=parts < num_parts, other=0.0)
    counts = tl.where(parts < num_parts, counts, 0.0)
    mean = tl.sum(means * counts, axis=0) / size
    distance = tl.where(counts > 0, means - mean, 0.0)
    variance = tl.sum(squares + distance * distance * counts, axis=0) / size
    scale = 1.0 / tl.sqrt(variance + eps)
    base = (row // num_groups) * num_channels * num_positions
    first = part * part_size
    for start in range(0, part_size, BLOCK):
        i = first + start + tl.arange(0, BLOCK)
        mask = (i < size) & (i < first + part_size)
        channel, place = _place(i.to(tl.int64), num_positions, group_channels, num_channels, group, IS_CHANNELS_LAST)
        y = (tl.load(x_ptr + base + place, mask=mask, other=0.0).to(tl.float32) - mean) * scale
        if IS_AFFINE:
            channel = group * group_channels + channel
            weight = tl.load(weight_ptr + channel, mask=mask, other=0.0).to(tl.float32)
            y = y * weight + tl.load(bias_ptr + channel, mask=mask, other=0.0).to(tl.float32)
        if HAS_SILU:
            y = y / (1.0 + tl.exp(-y))
        tl.store(y_ptr + base + place, y.to(y_ptr.dtype.element_ty), mask=mask)


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, has_silu: bool = False
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over each group of channels, in float32, then SiLU if asked.

    Shapes:  x, returned y: [batch, num_channels, ...]; weight and bias, both or none: [num_channels].
    Returns: y, channels last when x is, else contiguous.
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("group_norm", x=x, weight=weight, bias=bias)
    is_channels_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    x = x if is_channels_last else x.contiguous()
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    num_images, num_channels = x.shape[:2]
    num_positions = x[0, 0].numel()
    group_channels = num_channels // num_groups
    size, rows = num_positions * group_channels, num_images * num_groups
    num_parts = min(_MOST_PARTS, triton.cdiv(size, _BLOCK * _BLOCKS_A_PART))
    part_size = triton.cdiv(triton.cdiv(size, num_parts), _BLOCK) * _BLOCK
    num_parts = triton.cdiv(size, part_size)
    means = torch.empty((2, rows, num_parts), dtype=torch.float32, device=x.device)
    sizes = (num_positions, group_channels, num_channels, num_groups, num_parts, part_size)
    _moments_kernel[(rows, num_parts)](
        x, means[0], means[1], *sizes, IS_CHANNELS_LAST=is_channels_last, BLOCK=_BLOCK, num_warps=4,
        **dependent_launch(x.device),
    )  # fmt: skip
    _normalize_kernel[(rows, num_parts)](
        x, x if weight is None else weight, x if bias is None else bias, means[0], means[1], y, *sizes, eps,
        IS_AFFINE=weight is not None, HAS_SILU=has_silu, IS_CHANNELS_LAST=is_channels_last, BLOCK=_BLOCK,
        PARTS=triton.next_power_of_2(num_parts), num_warps=4, **dependent_launch(x.device),
    )  # fmt: skip
    return y
