"""Products of slots with their experts' matrices, a tile of slots of one expert at a time.

Slots come sorted and filled up to whole tiles (moe_align); a tile behind the last one in use only writes zeros for
slots that are left out, so the grid is the same whatever the routing, and a launch can be captured. Where an expert
gets many rows, torch's grouped product over gathered rows takes over.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

from typing import NamedTuple

import torch
from torch import Tensor

from fastkernels.errors import UnsupportedError
from fastkernels.kernels.backend import (
    check_dtypes,
    dependent_launch,
    is_hopper,
    let_dependents_start,
    tl,
    triton,
    wait_for_dependencies,
)

MAX_BLOCK_SIZE = 128
_CLEARED_COLS = 64
GROUPED_MM_ROWS = 512
"""Rows an expert gets on average from which torch._grouped_mm is asked; to be measured."""


class ExpertTile(NamedTuple):
    """Outputs and inputs of a tile, and how the kernel is compiled; its rows are the alignment's block size."""

    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


@triton.jit
def swizzled(pid, num_row_tiles, num_col_tiles, GROUP: tl.constexpr):
    """(row tile, column tile): GROUP row tiles go through all columns together, so that weights stay in cache."""
    per_group = GROUP * num_col_tiles
    first = pid // per_group * GROUP
    height = tl.minimum(num_row_tiles - first, GROUP)
    return first + pid % per_group % height, pid % per_group // height


@triton.jit
def store_zeros(y_ptr, slots, cols, num_slots, num_outputs):
    """The rows of y of a tile's slots; what is filled up has none."""
    offsets = slots.to(tl.int64)[:, None] * num_outputs + cols[None, :]
    is_there = (slots < num_slots)[:, None] & (cols < num_outputs)[None, :]
    tl.store(y_ptr + offsets, tl.zeros(offsets.shape, dtype=y_ptr.dtype.element_ty), mask=is_there)


@triton.jit(do_not_specialize=["num_slots"])
def _clear_kernel(
    y_ptr, sorted_ptr, padded_ptr, num_slots, num_outputs, num_col_tiles, block_size,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    first = tl.program_id(0) // num_col_tiles * block_size
    if first >= tl.load(padded_ptr):
        rows = tl.arange(0, BLOCK_M)
        slots = tl.load(sorted_ptr + first + rows, mask=rows < block_size, other=num_slots)
        cols = tl.program_id(0) % num_col_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
        store_zeros(y_ptr, slots, cols, num_slots, num_outputs)


@triton.jit(do_not_specialize=["num_slots", "num_row_tiles"])
def _grouped_gemm_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, sorted_ptr, expert_ids_ptr, padded_ptr,
    x_stride, num_slots, num_outputs, num_inputs, num_row_tiles, num_col_tiles, block_size,
    TOP_K: tl.constexpr, HAS_BIAS: tl.constexpr, IS_EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    row_tile, col_tile = swizzled(tl.program_id(0), num_row_tiles, num_col_tiles, 8)
    rows = tl.arange(0, BLOCK_M)
    num_padded = tl.load(padded_ptr)
    slots = tl.load(sorted_ptr + row_tile * block_size + rows, mask=rows < block_size, other=num_slots)
    cols = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    if row_tile * block_size >= num_padded:
        store_zeros(y_ptr, slots, cols, num_slots, num_outputs)
        return
    is_slot = slots < num_slots
    is_col = cols < num_outputs
    expert = tl.load(expert_ids_ptr + row_tile).to(tl.int64)
    x_rows = x_ptr + (slots // TOP_K).to(tl.int64)[:, None] * x_stride
    w_rows = w_ptr + (expert * num_outputs + tl.minimum(cols, num_outputs - 1))[None, :] * num_inputs
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for start in tl.range(0, num_inputs, BLOCK_K, num_stages=STAGES):
        inputs = start + tl.arange(0, BLOCK_K)
        if IS_EVEN:
            x = tl.load(x_rows + inputs[None, :], mask=is_slot[:, None], other=0.0)
            w = tl.load(w_rows + inputs[:, None])
        else:
            is_input = inputs < num_inputs
            x = tl.load(x_rows + inputs[None, :], mask=is_slot[:, None] & is_input[None, :], other=0.0)
            w = tl.load(w_rows + inputs[:, None], mask=is_input[:, None], other=0.0)
        acc = tl.dot(x, w, acc, input_precision="ieee")
    if HAS_BIAS:
        bias = tl.load(bias_ptr + expert * num_outputs + cols, mask=is_col, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    y_offsets = slots.to(tl.int64)[:, None] * num_outputs + cols[None, :]
    tl.store(y_ptr + y_offsets, acc.to(y_ptr.dtype.element_ty), mask=is_slot[:, None] & is_col[None, :])


def expert_tile(block_m: int, dtype: torch.dtype) -> ExpertTile:
    """Long rows of weights where few tokens wait on memory; square tiles where there are many."""
    if dtype == torch.float32:
        return ExpertTile(32, 32, 4, 1)
    if block_m <= 32:
        return ExpertTile(64, 128, 4, 4)
    if block_m == 64:
        return ExpertTile(128, 64, 4, 4)
    return ExpertTile(128, 64, 8, 3)


def moe_grouped_gemm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sorted_token_ids: Tensor,
    expert_ids: Tensor,
    num_tokens_post_padded: Tensor,
    top_k: int,
    ep_size: int = 1,
) -> Tensor:
    """y[slot] = weight[expert of slot] @ x[slot // top_k] (+ bias[expert of slot]), summed in fp32; zero where the
    slot is left out.

    ep_size: about one slot in so many is not left out.

    Shapes:  x: [num_rows, num_inputs], rows may be strided; weight: [num_experts, num_outputs, num_inputs]; bias:
             [num_experts, num_outputs]; y: [num_rows * top_k, num_outputs]; the rest as moe_align returns it, of a
             block size up to MAX_BLOCK_SIZE.
    Dtypes:  bf16, fp16 or fp32, all alike; integers int32.
    Errors:  UnsupportedError for another dtype.
    """
    check_dtypes("moe_grouped_gemm", x=x, weight=weight, bias=bias)
    num_experts, num_outputs, num_inputs = weight.shape
    num_slots, num_row_tiles = len(x) * top_k, expert_ids.numel()
    if num_slots == 0:
        return x.new_empty(0, num_outputs)
    if x.stride(1) != 1:
        x = x.contiguous()
    if num_slots >= GROUPED_MM_ROWS * num_experts * ep_size and supports_grouped_mm(x, weight):
        return by_grouped_mm(x, weight, bias, sorted_token_ids, expert_ids, num_tokens_post_padded, top_k)
    y = torch.empty((num_slots, num_outputs), dtype=x.dtype, device=x.device)
    block_size = sorted_token_ids.numel() // num_row_tiles
    block_m = tile_rows(block_size)
    tile = expert_tile(block_m, x.dtype)
    num_col_tiles = triton.cdiv(num_outputs, tile.block_n)
    _grouped_gemm_kernel[(num_row_tiles * num_col_tiles,)](
        x, weight.contiguous(), bias, y, sorted_token_ids, expert_ids, num_tokens_post_padded,
        x.stride(0), num_slots, num_outputs, num_inputs, num_row_tiles, num_col_tiles, block_size,
        TOP_K=top_k, HAS_BIAS=bias is not None, IS_EVEN=num_inputs % tile.block_k == 0,
        BLOCK_M=block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, STAGES=tile.num_stages,
        num_warps=tile.num_warps, **dependent_launch(x.device),
    )  # fmt: skip
    return y


def tile_rows(block_size: int) -> int:
    """Errors: UnsupportedError when a block has more rows than a tile."""
    if block_size > MAX_BLOCK_SIZE:
        raise UnsupportedError(f"Experts' blocks have at most {MAX_BLOCK_SIZE} rows here, got block_size {block_size}.")
    return max(16, triton.next_power_of_2(block_size))


def supports_grouped_mm(x: Tensor, weight: Tensor) -> bool:
    """torch._grouped_mm on a GPU: compute capability 9, bfloat16, and rows of whole 16 bytes."""
    is_aligned = all(n * x.element_size() % 16 == 0 for n in weight.shape[1:])
    return x.dtype == torch.bfloat16 and is_aligned and is_hopper(x.device)


def by_grouped_mm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sorted_token_ids: Tensor,
    expert_ids: Tensor,
    num_tokens_post_padded: Tensor,
    top_k: int,
) -> Tensor:
    """As moe_grouped_gemm, over rows copied into their experts' order; what is filled up lands behind the result, and
    products behind the last expert's, which are of nothing, give way to zeros."""
    num_experts, num_outputs, _ = weight.shape
    num_slots, block_size = len(x) * top_k, sorted_token_ids.numel() // expert_ids.numel()
    slots = sorted_token_ids.long()
    experts = torch.arange(num_experts, device=x.device, dtype=torch.int32)
    ends = torch.searchsorted(expert_ids, experts, right=True, out_int32=True) * block_size
    rows = x.index_select(0, slots.clamp(max=num_slots - 1) // top_k)
    products = torch._grouped_mm(rows, weight.transpose(1, 2), offs=ends)
    if bias is not None:
        block_bias = bias[expert_ids.long().clamp(max=num_experts - 1)]
        products = (products.unflatten(0, (-1, block_size)) + block_bias[:, None]).flatten(0, 1)
    y = torch.empty((num_slots + 1, num_outputs), dtype=x.dtype, device=x.device)
    y = y.index_copy_(0, slots, products)[:num_slots]
    clear_left_out(y, sorted_token_ids, num_tokens_post_padded, block_size)
    return y


def clear_left_out(y: Tensor, sorted_token_ids: Tensor, num_tokens_post_padded: Tensor, block_size: int) -> None:
    """Zeros into the rows of slots behind num_tokens_post_padded. y: [num_slots, num_outputs], contiguous."""
    num_slots, num_outputs = y.shape
    num_col_tiles = triton.cdiv(num_outputs, _CLEARED_COLS)
    _clear_kernel[(sorted_token_ids.numel() // block_size * num_col_tiles,)](
        y, sorted_token_ids, num_tokens_post_padded, num_slots, num_outputs, num_col_tiles, block_size,
        BLOCK_M=triton.next_power_of_2(block_size), BLOCK_N=_CLEARED_COLS, **dependent_launch(y.device),
    )  # fmt: skip
