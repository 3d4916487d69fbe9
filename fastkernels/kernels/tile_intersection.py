"""Pairs of tiles and Gaussians in order: counted, summed, written as keys, sorted, and the bounds of tiles found.

The sort is the library's radix sort; around it are three kernels, so that a pair is written once before it and once
after it. How many pairs there are is never read on the host: what lies behind the last one up to the capacity has a
key behind every tile's.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import check_dtypes, tl, triton

_TILE_SIZE = 16
_BLOCK = 256


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


@triton.jit(do_not_specialize=["columns", "rows"])
def _count_kernel(means_ptr, radii_ptr, counts_ptr, total, columns, rows, TILE: tl.constexpr, BLOCK: tl.constexpr):
    gaussian = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = gaussian < total
    _, _, wide, high = _square(means_ptr, radii_ptr, gaussian, mask, columns, rows, TILE)
    tl.store(counts_ptr + gaussian, wide * high, mask=mask)


@triton.jit(do_not_specialize=["columns", "rows", "num_steps"])
def _keys_kernel(
    means_ptr, radii_ptr, depths_ptr, ends_ptr, keys_ptr, owners_ptr, total, num_gaussians, capacity, columns, rows,
    num_images, num_steps, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A thread a slot: the Gaussian whose pairs it is among is the first whose end is behind it."""
    slot = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_slot = slot < capacity
    num_pairs = tl.load(ends_ptr + total - 1)
    is_pair = is_slot & (slot < num_pairs)
    tiles = columns.to(tl.int64) * rows
    key = tl.full([BLOCK], 0, tl.int64) + ((num_images * tiles) << 32)
    owner = tl.full([BLOCK], -1, tl.int32)
    if tl.program_id(0).to(tl.int64) * BLOCK < num_pairs:
        low = tl.full([BLOCK], 0, tl.int32)
        length = low + total
        for _ in range(num_steps):
            half = length // 2
            is_before = tl.load(ends_ptr + low + half, mask=is_pair & (length > 0), other=0) <= slot
            low = tl.where(is_before & (length > 0), low + half + 1, low)
            length = tl.where(is_before, tl.maximum(length - half - 1, 0), half)
        left, top, wide, high = _square(means_ptr, radii_ptr, low.to(tl.int64), is_pair, columns, rows, TILE)
        end = tl.load(ends_ptr + low, mask=is_pair, other=0)
        within = (slot - (end - wide.to(tl.int64) * high)).to(tl.int32)
        wide = tl.maximum(wide, 1)
        tile = (low // num_gaussians) * tiles + (top + within // wide) * columns + left + within % wide
        depth = tl.load(depths_ptr + low, mask=is_pair, other=0.0).to(tl.float32)
        bits = depth.to(tl.int32, bitcast=True).to(tl.int64)  # of positive floats: in their order
        key = tl.where(is_pair, (tile << 32) + bits, key)
        owner = tl.where(is_pair, low, owner)
    tl.store(keys_ptr + slot, key, mask=is_slot)
    tl.store(owners_ptr + slot, owner, mask=is_slot)


@triton.jit(do_not_specialize=["num_steps", "num_gathers"])
def _ranges_kernel(
    keys_ptr, order_ptr, owners_ptr, ids_ptr, offsets_ptr, capacity, num_offsets, num_gathers, num_steps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The first programs put owners in their order, the others search where each tile begins."""
    pid = tl.program_id(0)
    if pid < num_gathers:
        slot = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        is_slot = slot < capacity
        order = tl.load(order_ptr + slot, mask=is_slot, other=0)
        tl.store(ids_ptr + slot, tl.load(owners_ptr + order, mask=is_slot, other=0).to(tl.int64), mask=is_slot)
    else:
        tile = (pid - num_gathers) * BLOCK + tl.arange(0, BLOCK)
        is_tile = tile < num_offsets
        wanted = tile.to(tl.int64) << 32
        low = tl.full([BLOCK], 0, tl.int32)
        length = low + capacity
        for _ in range(num_steps):
            half = length // 2
            is_before = tl.load(keys_ptr + low + half, mask=is_tile & (length > 0), other=0) < wanted
            low = tl.where(is_before & (length > 0), low + half + 1, low)
            length = tl.where(is_before, tl.maximum(length - half - 1, 0), half)
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
    means2d, radii, depths = (t.contiguous() for t in (means2d, radii, depths))
    if total == 0:
        ids = torch.full((capacity,), -1, dtype=torch.int64, device=device)
        return ids, ids.new_zeros(num_offsets, dtype=torch.int32), ids.new_zeros(batch)
    counts = torch.empty(total, dtype=torch.int32, device=device)
    _count_kernel[(triton.cdiv(total, _BLOCK),)](
        means2d, radii, counts, total, columns, rows, TILE=_TILE_SIZE, BLOCK=_BLOCK
    )  # fmt: skip
    ends = counts.cumsum(0, dtype=torch.int64)
    keys = torch.empty(capacity, dtype=torch.int64, device=device)
    owners = torch.empty(capacity, dtype=torch.int32, device=device)
    num_blocks = triton.cdiv(capacity, _BLOCK)
    if num_blocks:
        _keys_kernel[(num_blocks,)](
            means2d, radii, depths, ends, keys, owners, total, num_gaussians, capacity, columns, rows, batch,
            total.bit_length(), TILE=_TILE_SIZE, BLOCK=_BLOCK,
        )  # fmt: skip
    keys, order = keys.sort(stable=True)
    ids = torch.empty(capacity, dtype=torch.int64, device=device)
    offsets = torch.empty(num_offsets, dtype=torch.int32, device=device)
    _ranges_kernel[(num_blocks + triton.cdiv(num_offsets, _BLOCK),)](
        keys, order, owners, ids, offsets, capacity, num_offsets, num_blocks, capacity.bit_length(), BLOCK=_BLOCK
    )  # fmt: skip
    return ids, offsets, counts.view(batch, num_gaussians).sum(1, dtype=torch.int64)
