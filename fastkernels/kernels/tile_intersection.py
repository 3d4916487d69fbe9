"""Pairs of tiles and Gaussians in order: Gaussians by depth, their pairs written in that order, pairs by tile.

Only Gaussians are sorted by depth, by the library. A stable radix sort of the pairs by tile alone keeps that order, in
two passes of 8 bits for up to 65536 tiles; keys of a tile and a depth would take eight. How many pairs there are is
never read on the host: grids cover the capacity, and programs behind the last pair end at once.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import check_dtypes, tl, triton

_TILE_SIZE = 16
_BLOCK = 1024
"""Gaussians that are counted by a program, and pairs that one puts in order."""
_BLOCK_BITS = 10
_DIGIT_BITS = 8
_SEARCHES = 128


@triton.jit
def _bound(at, count):
    """A place among tiles as one of 0 to count; it is held there as a float, for it may be past every integer."""
    return tl.minimum(tl.maximum(at, 0.0), count.to(tl.float32)).to(tl.int32)


@triton.jit
def _square(means_ptr, radii_ptr, gaussian, mask, columns, rows, TILE: tl.constexpr):
    """(first column, first row, columns, rows) of the tiles that a Gaussian touches; 1 / TILE is exact."""
    radius_x = tl.load(radii_ptr + 2 * gaussian, mask=mask, other=0)
    radius_y = tl.load(radii_ptr + 2 * gaussian + 1, mask=mask, other=0)
    x = tl.load(means_ptr + 2 * gaussian, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(means_ptr + 2 * gaussian + 1, mask=mask, other=0.0).to(tl.float32)
    left = _bound(tl.floor((x - radius_x) * (1.0 / TILE)), columns)
    top = _bound(tl.floor((y - radius_y) * (1.0 / TILE)), rows)
    wide = _bound(tl.ceil((x + radius_x) * (1.0 / TILE)), columns) - left
    high = _bound(tl.ceil((y + radius_y) * (1.0 / TILE)), rows) - top
    is_there = (radius_x > 0) & (radius_y > 0)
    return left, top, tl.where(is_there, wide, 0), tl.where(is_there, high, 0)


@triton.jit
def _num_pairs(starts_ptr, num_starts, capacity):
    """Of which there is room for."""
    return tl.minimum(tl.load(starts_ptr + num_starts), capacity)


@triton.jit
def _first_past(ptr, length, slot, mask, num_steps):
    """The first place of rising numbers whose number is over slot, of `length` places from ptr."""
    low = tl.zeros_like(length)
    for _ in range(num_steps):
        half = length // 2
        is_before = tl.load(ptr + low + half, mask=mask & (length > 0), other=0) <= slot
        low = tl.where(is_before & (length > 0), low + half + 1, low)
        length = tl.where(is_before, tl.maximum(length - half - 1, 0), half)
    return low


@triton.jit(do_not_specialize=["columns", "rows", "num_blocks"])
def _count_kernel(
    means_ptr, radii_ptr, order_ptr, ends_ptr, sums_ptr, num_gaussians, columns, rows, num_blocks,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pairs of a block's Gaussians, from the nearest on: their ends within the block, and their sum."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image, mask = tl.program_id(1).to(tl.int64), place < num_gaussians
    row = image * num_gaussians
    gaussian = row + tl.load(order_ptr + row + place, mask=mask, other=0)
    _, _, wide, high = _square(means_ptr, radii_ptr, gaussian, mask, columns, rows, TILE)
    counts = wide * high
    tl.store(ends_ptr + row + place, tl.cumsum(counts, axis=0), mask=mask)
    tl.store(sums_ptr + image * num_blocks + tl.program_id(0), tl.sum(counts.to(tl.int64), axis=0))


@triton.jit(do_not_specialize=["num_images", "num_blocks"])
def _starts_kernel(
    sums_ptr, starts_ptr, isects_ptr, totals_ptr, num_images, num_blocks, num_totals, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: where each block's pairs begin, behind the last their number; that of each image; totals of 0."""
    lane = tl.arange(0, BLOCK)
    for start in range(0, num_totals, BLOCK):
        tl.store(totals_ptr + start + lane, tl.zeros([BLOCK], tl.int32), mask=start + lane < num_totals)
    before = tl.zeros([1], tl.int64)
    for image in range(num_images):
        first = before
        for start in range(0, num_blocks, BLOCK):
            place = start + lane
            sums = tl.load(sums_ptr + image * num_blocks + place, mask=place < num_blocks, other=0)
            ends = before + tl.cumsum(sums, axis=0)
            tl.store(starts_ptr + image * num_blocks + place, ends - sums, mask=place < num_blocks)
            before += tl.sum(sums, axis=0)
        tl.store(isects_ptr + image + tl.arange(0, 1), before - first)
    tl.store(starts_ptr + num_images * num_blocks + tl.arange(0, 1), before)


@triton.jit
def _count_digits(
    key, mask, counts_ptr, locals_ptr, totals_ptr, block, num_slot_blocks, SHIFT: tl.constexpr, BITS: tl.constexpr
):
    """Of a block's keys: how many have each digit, and how many a smaller one; the former for all blocks too."""
    digit = tl.arange(0, 1 << BITS)
    counts = tl.histogram((key >> SHIFT) & ((1 << BITS) - 1), 1 << BITS, mask=mask)
    tl.store(counts_ptr + digit.to(tl.int64) * num_slot_blocks + block, counts)
    tl.store(locals_ptr + block.to(tl.int64) * (1 << BITS) + digit, tl.cumsum(counts, axis=0) - counts)
    tl.atomic_add(totals_ptr + (SHIFT // BITS << BITS) + digit, counts, sem="relaxed")


@triton.jit(do_not_specialize=["columns", "rows", "num_blocks", "num_starts", "num_steps", "num_slot_blocks"])
def _keys_kernel(
    means_ptr, radii_ptr, order_ptr, ends_ptr, starts_ptr, keys_ptr, owners_ptr, counts_ptr, locals_ptr, totals_ptr,
    num_gaussians, capacity, columns, rows, num_blocks, num_starts, num_steps, num_slot_blocks,
    TILE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_BITS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """A lane a pair: the block of Gaussians that it is of, then the Gaussian, are the first that end behind it."""
    num_pairs = _num_pairs(starts_ptr, num_starts, capacity)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    if first < num_pairs:
        slot = first + tl.arange(0, BLOCK)
        is_pair = slot < num_pairs
        block = _first_past(starts_ptr + 1, tl.full([BLOCK], 0, tl.int32) + num_starts, slot, is_pair, num_steps)
        slot -= tl.load(starts_ptr + block, mask=is_pair, other=0)
        image, block = (block // num_blocks).to(tl.int64), block % num_blocks
        place = image * num_gaussians + block * BLOCK
        size = tl.minimum(num_gaussians - block * BLOCK, BLOCK)
        place += _first_past(ends_ptr + place, size, slot, is_pair, BLOCK_BITS + 1)
        owner = image * num_gaussians + tl.load(order_ptr + place, mask=is_pair, other=0)
        left, top, wide, high = _square(means_ptr, radii_ptr, owner, is_pair, columns, rows, TILE)
        within = (slot - tl.load(ends_ptr + place, mask=is_pair, other=0)).to(tl.int32) + wide * high
        wide = tl.maximum(wide, 1)
        key = image.to(tl.int32) * (columns * rows) + (top + within // wide) * columns + left + within % wide
        tl.store(keys_ptr + first + tl.arange(0, BLOCK), key, mask=is_pair)
        tl.store(owners_ptr + first + tl.arange(0, BLOCK), owner.to(tl.int32), mask=is_pair)
        _count_digits(
            key, is_pair, counts_ptr, locals_ptr, totals_ptr, tl.program_id(0), num_slot_blocks, 0, BITS
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_starts", "num_slot_blocks"])
def _digits_kernel(
    keys_ptr, starts_ptr, counts_ptr, locals_ptr, totals_ptr, capacity, num_starts, num_slot_blocks,
    SHIFT: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    num_pairs = _num_pairs(starts_ptr, num_starts, capacity)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    if first < num_pairs:
        slot = first + tl.arange(0, BLOCK)
        key = tl.load(keys_ptr + slot, mask=slot < num_pairs, other=0)
        _count_digits(
            key, slot < num_pairs, counts_ptr, locals_ptr, totals_ptr, tl.program_id(0), num_slot_blocks, SHIFT, BITS
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_starts", "num_slot_blocks"])
def _bases_kernel(
    starts_ptr, counts_ptr, totals_ptr, capacity, num_starts, num_slot_blocks,
    SHIFT: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """A program a digit: counts become where each block's pairs of that digit go."""
    num_pairs = _num_pairs(starts_ptr, num_starts, capacity)
    num_used = ((num_pairs + BLOCK - 1) // BLOCK).to(tl.int32)
    digit = tl.arange(0, 1 << BITS)
    totals = tl.load(totals_ptr + (SHIFT // BITS << BITS) + digit)
    before = tl.sum(tl.where(digit < tl.program_id(0), totals, 0), axis=0)
    row_ptr = counts_ptr + tl.program_id(0).to(tl.int64) * num_slot_blocks
    for start in range(0, num_used, BLOCK):
        block = start + tl.arange(0, BLOCK)
        counts = tl.load(row_ptr + block, mask=block < num_used, other=0)
        tl.store(row_ptr + block, before + tl.cumsum(counts, axis=0) - counts, mask=block < num_used)
        before += tl.sum(counts, axis=0)


@triton.jit(do_not_specialize=["num_starts", "num_slot_blocks"])
def _scatter_kernel(
    keys_ptr, owners_ptr, starts_ptr, bases_ptr, locals_ptr, new_keys_ptr, new_owners_ptr, capacity, num_starts,
    num_slot_blocks, SHIFT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_BITS: tl.constexpr, BITS: tl.constexpr,
    IS_LAST: tl.constexpr,
):  # fmt: skip
    """Sorts a block by digit and place, so that what goes to one digit's part is written side by side."""
    num_pairs = _num_pairs(starts_ptr, num_starts, capacity)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    slot = first + lane
    if first < num_pairs:
        is_pair = slot < num_pairs
        key = tl.load(keys_ptr + slot, mask=is_pair, other=0)
        digit = tl.where(is_pair, (key >> SHIFT) & ((1 << BITS) - 1), 1 << BITS)
        both = tl.sort((digit << BLOCK_BITS) + lane)
        digit, source = both >> BLOCK_BITS, first + (both & (BLOCK - 1))
        base = tl.load(bases_ptr + digit.to(tl.int64) * num_slot_blocks + tl.program_id(0), mask=is_pair, other=0)
        behind = tl.load(locals_ptr + tl.program_id(0).to(tl.int64) * (1 << BITS) + digit, mask=is_pair, other=0)
        target = base - behind + lane
        owner = tl.load(owners_ptr + source, mask=is_pair, other=0)
        tl.store(new_keys_ptr + target, tl.load(keys_ptr + source, mask=is_pair, other=0), mask=is_pair)
        tl.store(new_owners_ptr + target, owner.to(new_owners_ptr.dtype.element_ty), mask=is_pair)
    if IS_LAST:
        nobody = tl.full([BLOCK], -1, new_owners_ptr.dtype.element_ty)
        tl.store(new_owners_ptr + slot, nobody, mask=(slot >= num_pairs) & (slot < capacity))


@triton.jit(do_not_specialize=["num_starts", "num_steps"])
def _offsets_kernel(
    keys_ptr, starts_ptr, offsets_ptr, capacity, num_starts, num_offsets, num_steps, BLOCK: tl.constexpr
):
    tile = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_tile = tile < num_offsets
    num_pairs = _num_pairs(starts_ptr, num_starts, capacity).to(tl.int32)
    low = _first_past(keys_ptr, tl.full([BLOCK], 0, tl.int32) + num_pairs, tile - 1, is_tile, num_steps)
    tl.store(offsets_ptr + tile, low, mask=is_tile)


def tile_intersection(
    means2d: Tensor, radii: Tensor, depths: Tensor, width: int, height: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(flatten_ids [capacity] int64, offsets [batch * tiles + 1] int32, num_isects [batch] int64), as TileIntersection.

    Shapes:  means2d, radii (int32): [batch, num_gaussians, 2]; depths: [batch, num_gaussians].
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("tile_intersection", means2d=means2d, depths=depths)
    batch, num_gaussians = depths.shape
    device, total = depths.device, batch * num_gaussians
    columns, rows = -(-width // _TILE_SIZE), -(-height // _TILE_SIZE)
    num_offsets = batch * columns * rows + 1

    def ints(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    def longs(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int64, device=device)

    if total == 0:
        return longs(capacity).fill_(-1), ints(num_offsets).zero_(), longs(batch).zero_()
    means2d, radii = means2d.contiguous(), radii.contiguous()
    order = depths.sort(dim=1, stable=True).indices
    num_blocks, num_slot_blocks = triton.cdiv(num_gaussians, _BLOCK), triton.cdiv(capacity, _BLOCK)
    num_starts = batch * num_blocks
    num_passes = max(1, triton.cdiv((num_offsets - 2).bit_length(), _DIGIT_BITS))
    ends, sums, starts, num_isects = ints(total), longs(num_starts), longs(num_starts + 1), longs(batch)
    totals = ints(num_passes << _DIGIT_BITS)
    counts, local_starts = ints(num_slot_blocks << _DIGIT_BITS), ints(num_slot_blocks << _DIGIT_BITS)
    keys, owners, ids, offsets = ints(capacity), ints(capacity), longs(capacity), ints(num_offsets)
    _count_kernel[(num_blocks, batch)](
        means2d, radii, order, ends, sums, num_gaussians, columns, rows, num_blocks, TILE=_TILE_SIZE, BLOCK=_BLOCK
    )  # fmt: skip
    _starts_kernel[(1,)](sums, starts, num_isects, totals, batch, num_blocks, totals.numel(), BLOCK=_BLOCK)
    if num_slot_blocks:
        _keys_kernel[(num_slot_blocks,)](
            means2d, radii, order, ends, starts, keys, owners, counts, local_starts, totals, num_gaussians, capacity,
            columns, rows, num_blocks, num_starts, num_starts.bit_length(), num_slot_blocks,
            TILE=_TILE_SIZE, BLOCK=_BLOCK, BLOCK_BITS=_BLOCK_BITS, BITS=_DIGIT_BITS, num_warps=8,
        )  # fmt: skip
    for number in range(num_passes if num_slot_blocks else 0):
        shift, is_last = number * _DIGIT_BITS, number == num_passes - 1
        if number:
            _digits_kernel[(num_slot_blocks,)](
                keys, starts, counts, local_starts, totals, capacity, num_starts, num_slot_blocks,
                SHIFT=shift, BLOCK=_BLOCK, BITS=_DIGIT_BITS,
            )  # fmt: skip
        _bases_kernel[(1 << _DIGIT_BITS,)](
            starts, counts, totals, capacity, num_starts, num_slot_blocks, SHIFT=shift, BLOCK=_BLOCK, BITS=_DIGIT_BITS
        )  # fmt: skip
        new_keys, new_owners = ints(capacity), ids if is_last else ints(capacity)
        _scatter_kernel[(num_slot_blocks,)](
            keys, owners, starts, counts, local_starts, new_keys, new_owners, capacity, num_starts, num_slot_blocks,
            SHIFT=shift, BLOCK=_BLOCK, BLOCK_BITS=_BLOCK_BITS, BITS=_DIGIT_BITS, IS_LAST=is_last, num_warps=8,
        )  # fmt: skip
        keys, owners = new_keys, new_owners
    _offsets_kernel[(triton.cdiv(num_offsets, _SEARCHES),)](
        keys, starts, offsets, capacity, num_starts, num_offsets, capacity.bit_length(), BLOCK=_SEARCHES
    )  # fmt: skip
    return ids, offsets, num_isects
