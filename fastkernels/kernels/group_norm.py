"""GroupNorm with an optional SiLU: moments of parts of each image, a mean and scale a channel, each element once more.

Parts are as many as run at once, so that every one is read from its first tile on, and normalised from its last one
back: what was read last is still in the L2 cache. Moments are centred ones throughout: each lane keeps its own
(Welford, https://doi.org/10.1080/00401706.1962.10490022), and those are merged (Chan et al.,
https://doi.org/10.1080/00031305.1983.10483115).
"""
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

_LANES = 1024
"""Elements of a tile: 4 warps of 32 threads, 16 bytes a thread of 16-bit dtypes."""

_TILES = 4
"""That a program loads at once."""

_MOST_CHANNELS = 64
"""Of a tile: 128 bytes a position of 16-bit dtypes."""

_PROGRAMS_PER_SM = 8
"""Of 4 warps each, which 64 registers a thread allow."""

_MERGED_AT_ONCE = 2048
_MOST_MERGED_PARTS = 512


@triton.jit
def _fold(mean, square, x, is_there, seen):
    """Means and sums of squared distances from them, with one more value a lane: its `seen`-th."""
    x = x.to(tl.float32)
    delta = tl.where(is_there, x - mean, 0.0)
    mean += delta * (1.0 / seen)
    return mean, square + delta * (x - mean)


@triton.jit(do_not_specialize=["part_steps", "num_parts", "num_groups"])
def _run_moments_kernel(
    x_ptr, moments_ptr, size, part_steps, num_parts, num_groups, LANES: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Moments of a part of a group whose elements are one run; written to [image, part, 2, group]."""
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    pid = tl.program_id(0)
    row = pid // num_parts
    part_size = part_steps.to(tl.int64) * (4 * LANES)  # as the compiler sees, a multiple of 16
    first = (pid % num_parts) * part_size
    num = tl.minimum(size - first, part_size).to(tl.int32)
    base = x_ptr + row.to(tl.int64) * size + first
    lane = tl.arange(0, LANES)
    mean = tl.zeros([LANES], dtype=tl.float32)
    square = tl.zeros([LANES], dtype=tl.float32)
    seen = 0.0
    whole = num // (4 * LANES) * (4 * LANES)
    for start in range(0, whole, 4 * LANES):
        x_0 = tl.load(base + start + lane)
        x_1 = tl.load(base + start + LANES + lane)
        x_2 = tl.load(base + start + 2 * LANES + lane)
        x_3 = tl.load(base + start + 3 * LANES + lane)
        mean, square = _fold(mean, square, x_0, True, seen + 1.0)
        mean, square = _fold(mean, square, x_1, True, seen + 2.0)
        mean, square = _fold(mean, square, x_2, True, seen + 3.0)
        mean, square = _fold(mean, square, x_3, True, seen + 4.0)
        seen += 4.0
    for start in range(whole, num, LANES):
        is_there = start + lane < num
        seen += 1.0
        x = tl.load(base + start + lane, mask=is_there, other=0.0)
        mean, square = _fold(mean, square, x, is_there, seen)
    counts = ((num - lane + LANES - 1) // LANES).to(tl.float32)
    total = tl.sum(counts * mean, axis=0) / num
    total += tl.sum(counts * (mean - total), axis=0) / num  # of what the large sum was rounded by
    distance = mean - total
    square = tl.sum(square + counts * distance * distance, axis=0)
    image = row // num_groups
    place = moments_ptr + ((image * num_parts + pid % num_parts) * 2).to(tl.int64) * num_groups + row % num_groups
    tl.store(place, total)
    tl.store(place + num_groups, square)


@triton.jit(do_not_specialize=["num_positions", "part_size", "num_parts", "num_blocks"])
def _channel_moments_kernel(
    x_ptr, moments_ptr, num_channels, num_positions, part_size, num_parts, num_blocks,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Moments of each channel over a part of the positions, channels last; written to [image, part, 2, channel]."""
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    pid = tl.program_id(0)
    part = pid // num_blocks  # of all images
    channel = (pid % num_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < num_channels
    first = (part % num_parts) * part_size
    num = tl.minimum(num_positions - first, part_size)
    base = x_ptr + ((part // num_parts).to(tl.int64) * num_positions + first) * num_channels
    lane = tl.arange(0, ROWS)
    place = lane[:, None] * num_channels + channel[None, :]
    mean = tl.zeros([ROWS, CHANNELS], dtype=tl.float32)
    square = tl.zeros([ROWS, CHANNELS], dtype=tl.float32)
    seen = 0.0
    step = ROWS * num_channels
    for start in range(0, num, 4 * ROWS):
        tile = base + start * num_channels + place
        is_0 = (start + lane < num)[:, None] & is_channel[None, :]
        is_1 = (start + ROWS + lane < num)[:, None] & is_channel[None, :]
        is_2 = (start + 2 * ROWS + lane < num)[:, None] & is_channel[None, :]
        is_3 = (start + 3 * ROWS + lane < num)[:, None] & is_channel[None, :]
        x_0 = tl.load(tile, mask=is_0, other=0.0)
        x_1 = tl.load(tile + step, mask=is_1, other=0.0)
        x_2 = tl.load(tile + 2 * step, mask=is_2, other=0.0)
        x_3 = tl.load(tile + 3 * step, mask=is_3, other=0.0)
        mean, square = _fold(mean, square, x_0, is_0, seen + 1.0)
        mean, square = _fold(mean, square, x_1, is_1, seen + 2.0)
        mean, square = _fold(mean, square, x_2, is_2, seen + 3.0)
        mean, square = _fold(mean, square, x_3, is_3, seen + 4.0)
        seen += 4.0
    counts = ((num - lane + ROWS - 1) // ROWS).to(tl.float32)[:, None]
    total = tl.sum(counts * mean, axis=0) / num
    total += tl.sum(counts * (mean - total[None, :]), axis=0) / num
    distance = mean - total[None, :]
    square = tl.sum(square + counts * distance * distance, axis=0)
    moments = moments_ptr + part.to(tl.int64) * (2 * num_channels) + channel
    tl.store(moments, total, mask=is_channel)
    tl.store(moments + num_channels, square, mask=is_channel)


@triton.jit(
    do_not_specialize=[
        "shift_stride", "num_channels", "group_channels", "num_groups", "num_columns", "columns", "num_positions",
        "part_size", "num_parts",
    ]
)  # fmt: skip
def _merge_kernel(
    moments_ptr, shift_ptr, weight_ptr, affine_ptr, shift_stride, num_channels, group_channels, num_groups, num_columns,
    columns, num_positions, part_size, num_parts, eps,
    HAS_SHIFT: tl.constexpr, HAS_WEIGHT: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Of one group of one image, its parts by its columns: the group's mean, and each channel's scale.

    num_columns: of an image, of which each group has `columns`; each counts num_positions. Written to
    [image, 2, channel]. With a shift columns are channels: theirs is added to their means, and what is written is the
    group's mean less it, for a shift moves a channel and changes no distance within it.
    """
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    image = (tl.program_id(0) // num_groups).to(tl.int64)
    group = tl.program_id(0) % num_groups
    base = moments_ptr + image * num_parts * 2 * num_columns + group * columns
    shifts = shift_ptr + image * shift_stride + group * group_channels
    count = 0.0
    mean = 0.0
    square = 0.0
    for first_part in range(0, num_parts, PARTS):
        part = first_part + tl.arange(0, PARTS)
        each = tl.minimum(tl.maximum(num_positions - part.to(tl.int64) * part_size, 0), part_size).to(tl.float32)
        for first_column in range(0, columns, COLUMNS):
            column = first_column + tl.arange(0, COLUMNS)
            place = base + part[:, None] * (2 * num_columns) + column[None, :]
            mask = (part < num_parts)[:, None] & (column < columns)[None, :]
            means = tl.load(place, mask=mask, other=0.0)
            if HAS_SHIFT:
                shift = tl.load(shifts + column, mask=column < columns, other=0.0).to(tl.float32)
                means += shift[None, :]
            squares = tl.load(place + num_columns, mask=mask, other=0.0)
            counts = tl.where(mask, each[:, None], 0.0)
            some = tl.sum(counts)
            tile_mean = tl.sum(means * counts) / some
            tile_mean += tl.sum((means - tile_mean) * counts) / some
            distance = means - tile_mean
            delta = tile_mean - mean
            both = count + some
            square += tl.sum(squares + distance * distance * counts) + delta * delta * (count * some / both)
            mean += delta * (some / both)
            count = both
    scale = 1.0 / tl.sqrt(square / count + eps)
    affine = affine_ptr + image * 2 * num_channels + group * group_channels
    for first in range(0, group_channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        mask = channel < group_channels
        scales = tl.full([CHANNELS], 1.0, dtype=tl.float32) * scale
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + group * group_channels + channel, mask=mask, other=0.0)
            scales *= weight.to(tl.float32)
        means = tl.zeros([CHANNELS], dtype=tl.float32) + mean
        if HAS_SHIFT:
            means -= tl.load(shifts + channel, mask=mask, other=0.0).to(tl.float32)
        tl.store(affine + channel, means, mask=mask)
        tl.store(affine + num_channels + channel, scales, mask=mask)


@triton.jit
def _activate(y, HAS_SILU: tl.constexpr):
    if HAS_SILU:
        y = y / (1.0 + tl.exp(-y))
    return y


@triton.jit(do_not_specialize=["num_planes", "num_channels", "num_blocks"])
def _normalize_planes_kernel(
    x_ptr, affine_ptr, bias_ptr, y_ptr, num_planes, num_channels, num_positions, num_blocks,
    HAS_BIAS: tl.constexpr, HAS_SILU: tl.constexpr, PLANES: tl.constexpr, POSITIONS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A piece of some planes, a plane being one channel of one image; the last ones first."""
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    plane = (pid // num_blocks) * PLANES + tl.arange(0, PLANES)
    is_plane = plane < num_planes
    image, channel = plane // num_channels, plane % num_channels
    affine = affine_ptr + image.to(tl.int64) * (2 * num_channels) + channel
    mean = tl.load(affine, mask=is_plane, other=0.0)
    scale = tl.load(affine + num_channels, mask=is_plane, other=0.0)
    position = (pid % num_blocks) * POSITIONS + tl.arange(0, POSITIONS)
    place = (plane.to(tl.int64) * num_positions)[:, None] + position[None, :]
    mask = is_plane[:, None] & (position < num_positions)[None, :]
    x = tl.load(x_ptr + place, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    y = (x - mean[:, None]) * scale[:, None]
    if HAS_BIAS:
        y += tl.load(bias_ptr + channel, mask=is_plane, other=0.0).to(tl.float32)[:, None]
    tl.store(y_ptr + place, _activate(y, HAS_SILU).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_positions", "part_size", "num_parts", "num_blocks"])
def _normalize_pixels_kernel(
    x_ptr, affine_ptr, bias_ptr, y_ptr, num_channels, num_positions, part_size, num_parts, num_blocks,
    HAS_BIAS: tl.constexpr, HAS_SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A part of the positions and some channels of them, channels last; its last tile first."""
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    pid = tl.program_id(0)
    part = pid // num_blocks  # of all images
    channel = (pid % num_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < num_channels
    image = (part // num_parts).to(tl.int64)
    first = (part % num_parts) * part_size
    num = tl.minimum(num_positions - first, part_size)
    base = (image * num_positions + first) * num_channels
    affine = affine_ptr + image * (2 * num_channels) + channel
    mean = tl.load(affine, mask=is_channel, other=0.0)[None, :]
    scale = tl.load(affine + num_channels, mask=is_channel, other=0.0)[None, :]
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    lane = tl.arange(0, ROWS)
    place = lane[:, None] * num_channels + channel[None, :]
    num_tiles = tl.cdiv(num, ROWS)
    for i in range(num_tiles):
        start = (num_tiles - 1 - i) * ROWS
        mask = (start + lane < num)[:, None] & is_channel[None, :]
        tile = base + start * num_channels
        x = tl.load(x_ptr + tile + place, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
        y = (x - mean) * scale
        if HAS_BIAS:
            y += bias
        tl.store(y_ptr + tile + place, _activate(y, HAS_SILU).to(y_ptr.dtype.element_ty), mask=mask)


def _parts(size: int, step: int, num_rows: int, device: torch.device) -> tuple[int, int]:
    """(size of a part, number of parts) of each of num_rows, all of whose parts are to run at once."""
    num_parts = max(1, min(triton.cdiv(size, step), _PROGRAMS_PER_SM * num_sms(device) // num_rows))
    part_size = triton.cdiv(triton.cdiv(size, num_parts), step) * step
    return part_size, triton.cdiv(size, part_size)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    has_silu: bool = False,
    shift: Tensor | None = None,
) -> Tensor:
    """(h - mean) / sqrt(variance + eps) * weight + bias over each group of channels, in float32, then SiLU if asked.

    h is x (+ shift), not rounded.

    Shapes:  x, returned y: [batch, num_channels, ...]; shift: [batch, num_channels], images may share one row; weight
             and bias, both or none: [num_channels].
    Returns: y, channels last when x is, else contiguous.
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("group_norm", x=x, weight=weight, bias=bias, shift=shift)
    is_channels_last = x.dim() > 2 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()
    x = x if is_channels_last else x.contiguous()
    if shift is not None and shift.stride(-1) != 1:
        shift = shift.contiguous()
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    num_images, num_channels = x.shape[:2]
    num_positions = x[0, 0].numel()
    group_channels = num_channels // num_groups
    tile_channels = max(8, min(_MOST_CHANNELS, triton.next_power_of_2(num_channels)))
    rows = _LANES // tile_channels
    num_blocks = triton.cdiv(num_channels, tile_channels)
    pdl = dependent_launch(x.device)
    has_channels = is_channels_last or shift is not None  # are told apart by the moments, or groups alone
    if has_channels:
        num_columns, columns, size = num_channels, group_channels, num_positions
    else:
        num_columns, columns, size = num_groups, 1, num_positions * group_channels
    if is_channels_last:
        part_size, num_parts = _parts(size, _TILES * rows, num_images * num_blocks, x.device)
    else:
        part_size, num_parts = _parts(size, _TILES * _LANES, num_images * num_columns, x.device)
    moments = torch.empty((num_images, num_parts, 2, num_columns), dtype=torch.float32, device=x.device)
    affine = torch.empty((num_images, 2, num_channels), dtype=torch.float32, device=x.device)
    by_channel = (num_channels, num_positions, part_size, num_parts, num_blocks)
    if is_channels_last:
        _channel_moments_kernel[(num_images * num_parts * num_blocks,)](
            x, moments, *by_channel, ROWS=rows, CHANNELS=tile_channels, num_warps=4, **pdl
        )
    else:
        _run_moments_kernel[(num_images * num_columns * num_parts,)](
            x, moments, size, part_size // (_TILES * _LANES), num_parts, num_columns, LANES=_LANES, num_warps=4, **pdl
        )
    merged_channels = min(128, triton.next_power_of_2(group_channels))
    merged_columns = merged_channels if has_channels else 1
    merged_parts = min(_MOST_MERGED_PARTS, _MERGED_AT_ONCE // merged_columns)
    _merge_kernel[(num_images * num_groups,)](
        moments, x if shift is None else shift, x if weight is None else weight, affine,
        0 if shift is None else shift.stride(0), num_channels, group_channels, num_groups, num_columns, columns, size,
        part_size, num_parts, eps,
        HAS_SHIFT=shift is not None, HAS_WEIGHT=weight is not None, PARTS=merged_parts, COLUMNS=merged_columns,
        CHANNELS=merged_channels, num_warps=4, **pdl,
    )  # fmt: skip
    options = {"HAS_BIAS": bias is not None, "HAS_SILU": has_silu, "num_warps": 4, **pdl}
    tensors = (x, affine, x if bias is None else bias, y)
    if is_channels_last:
        _normalize_pixels_kernel[(num_images * num_parts * num_blocks,)](
            *tensors, *by_channel, ROWS=2 * rows, CHANNELS=tile_channels, **options
        )
        return y
    positions = max(16, min(1024, triton.next_power_of_2(num_positions)))
    planes, num_pieces = _TILES * _LANES // positions, triton.cdiv(num_positions, positions)
    num_planes = num_images * num_channels
    _normalize_planes_kernel[(triton.cdiv(num_planes, planes) * num_pieces,)](
        *tensors, num_planes, num_channels, num_positions, num_pieces, PLANES=planes, POSITIONS=positions, **options
    )
    return y
