"""The places of the k largest of each row, a program a row, which reads it once and then single strips of it.

A row is cut into strips. The largest of the row is the largest of the strip with the largest maximum; once it is taken,
that strip's maximum is the next one of its values. So k strips are read again, from a cache, whatever the row holds.
"""
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
from fastkernels.kernels.greedy_sample import _ordered_key

MOST_COLUMNS = 16384
MOST_TAKEN = 64
"""Each one taken waits for a strip: beyond these torch.topk, which sorts, is to be preferred."""

_STRIPS = 128
_LEAST_STRIP = 32
_LEAST = tl.constexpr(-0x80000000)
"""Of keys, which are int32 in the order of the values: what is behind the row's end."""


@triton.jit
def _strip_keys(row_ptr, column, num_columns):
    x = tl.load(row_ptr + column, mask=column < num_columns, other=0.0).to(tl.float32)
    return tl.where(column < num_columns, _ordered_key(x), _LEAST)


@triton.jit
def _strip_tops(row_ptr, strips, in_strip, num_columns):
    """The largest key of each of 32 strips, a thread each: behind a reduction each thread has them all."""
    keys = _strip_keys(row_ptr, strips[:, None] * in_strip.shape[0] + in_strip[None, :], num_columns)
    return tl.gather(tl.max(keys, axis=1), strips % 32, 0)


@triton.jit(do_not_specialize=["x_stride", "num_columns", "k"])
def _top_k_per_row_kernel(
    x_ptr, index_ptr, x_stride, num_columns, k, STRIP: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    row = tl.program_id(0).to(tl.int64)
    row_ptr = x_ptr + row * x_stride
    in_strip = tl.arange(0, STRIP)
    strip_0 = tl.arange(0, 32)
    strip_1, strip_2, strip_3 = strip_0 + 32, strip_0 + 64, strip_0 + 96
    tops_01 = tl.join(
        _strip_tops(row_ptr, strip_0, in_strip, num_columns), _strip_tops(row_ptr, strip_1, in_strip, num_columns)
    )
    tops_23 = tl.join(
        _strip_tops(row_ptr, strip_2, in_strip, num_columns), _strip_tops(row_ptr, strip_3, in_strip, num_columns)
    )
    tops = tl.reshape(tl.join(tops_01, tops_23), [128])
    strips = tl.reshape(tl.join(tl.join(strip_0, strip_1), tl.join(strip_2, strip_3)), [128])
    last_key = tl.full([], 0x7FFFFFFF, dtype=tl.int32)
    last_column = tl.full([], -1, dtype=tl.int32)
    for place in range(k):
        key = tl.max(tops, axis=0)
        strip = tl.min(tl.where(tops == key, strips, 127), axis=0)
        column = strip * STRIP + in_strip
        keys = _strip_keys(row_ptr, column, num_columns)
        is_left = (keys == key) & ((key < last_key) | (column > last_column))
        taken = tl.min(tl.where(is_left, column, 0x7FFFFFFF), axis=0)
        is_left = (keys < key) | ((keys == key) & (column > taken))
        tops = tl.where(strips == strip, tl.max(tl.where(is_left, keys, _LEAST), axis=0), tops)
        tl.store(index_ptr + row * k + place, taken.to(tl.int64))
        last_key, last_column = key, taken


def top_k_per_row(x: Tensor, k: int) -> Tensor:
    """indices[i] = the places of the k largest of x[i], the largest first, NaN as the largest; the first of equal ones.

    Shapes:  x: [num_rows, num_cols], strided as it may be; indices: [num_rows, k], int64; 0 <= k <= num_cols.
    Returns: indices; those of torch.topk, equal values in any order, where a row or k is large.
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("top_k_per_row", x=x)
    num_rows, num_columns = x.shape
    if num_columns > MOST_COLUMNS or k > MOST_TAKEN:
        return torch.topk(x, k, dim=-1).indices
    indices = torch.empty((num_rows, k), dtype=torch.int64, device=x.device)
    if indices.numel() == 0:
        return indices
    x = x if x.stride(1) == 1 else x.contiguous()
    strip = max(_LEAST_STRIP, triton.next_power_of_2(num_columns) // _STRIPS)
    _top_k_per_row_kernel[(num_rows,)](
        x, indices, x.stride(0), num_columns, k,
        STRIP=strip, num_warps=strip // _LEAST_STRIP, **dependent_launch(x.device),
    )  # fmt: skip
    return indices
