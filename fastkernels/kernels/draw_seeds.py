"""The seed of each row's draw in one launch."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import ROW_POINTERS, tl, triton
from fastkernels.kernels.top_k_top_p_sample import _mix

BLOCK = 256


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=ROW_POINTERS)
def _draw_seeds_kernel(seed_ptr, row_ptr, position_ptr, out_ptr, num_rows, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = places < num_rows
    rows = tl.load(row_ptr + places, mask=is_row, other=0)
    seeds = tl.load(seed_ptr + rows, mask=is_row, other=0).to(tl.uint64, bitcast=True)
    positions = tl.load(position_ptr + places, mask=is_row, other=0).to(tl.uint64, bitcast=True)
    bits = _mix(seeds + (positions + 1) * 0x9E3779B97F4A7C15) >> 1
    tl.store(out_ptr + places, bits.to(tl.int64, bitcast=True), mask=is_row)


def draw_seeds(seeds: Tensor, row_index: Tensor, positions: Tensor) -> Tensor:
    """mix(seeds[row_index] + (positions + 1) * G) >> 1, SplitMix64's.

    Shapes:  seeds: [max_rows]; row_index, positions and the result: [num_rows].
    Dtypes:  all int64.
    """
    out = torch.empty_like(positions)
    num_rows = positions.shape[0]
    if num_rows:
        _draw_seeds_kernel[(triton.cdiv(num_rows, BLOCK),)](
            seeds, row_index, positions, out, num_rows, BLOCK=BLOCK, num_warps=4
        )
    return out
