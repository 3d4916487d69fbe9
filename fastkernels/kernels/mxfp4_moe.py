"""Products of slots with their experts' matrices in MXFP4, unpacked in registers: device memory gives half a byte each.

The two weights of a byte belong to neighbouring inputs, so a tile is two products: of the even inputs with the low
halves, of the odd ones with the high halves.
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
from fastkernels.kernels.moe_grouped_gemm import ExpertTile, swizzled, tile_rows


@triton.jit
def _unpack(codes):
    """The value of four bits: a sign, two bits of exponent, one of mantissa."""
    size = codes & 7
    exponent = (size >> 1) - 1
    value = tl.where(size < 2, 0.5 * size, (1.0 + 0.5 * (size & 1)) * (1 << tl.maximum(exponent, 0)).to(tl.float32))
    return tl.where(codes >= 8, -value, value)


@triton.jit
def _mxfp4_moe_kernel(
    x_ptr, blocks_ptr, scales_ptr, bias_ptr, y_ptr, sorted_ptr, expert_ids_ptr, padded_ptr,
    x_stride, num_slots, num_outputs, num_inputs, num_row_tiles, num_col_tiles, block_size,
    TOP_K: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    row_tile, col_tile = swizzled(tl.program_id(0), num_row_tiles, num_col_tiles, 8)
    if row_tile * block_size >= tl.load(padded_ptr):
        return
    rows = tl.arange(0, BLOCK_M)
    slots = tl.load(sorted_ptr + row_tile * block_size + rows, mask=rows < block_size, other=num_slots)
    is_slot = slots < num_slots
    expert = tl.load(expert_ids_ptr + row_tile).to(tl.int64)
    cols = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_col = cols < num_outputs
    x_rows = x_ptr + (slots // TOP_K).to(tl.int64)[:, None] * x_stride
    outputs = expert * num_outputs + tl.minimum(cols, num_outputs - 1)
    block_rows = blocks_ptr + outputs[None, :] * (num_inputs // 2)
    scale_rows = scales_ptr + outputs[None, :] * (num_inputs // 32)
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for start in tl.range(0, num_inputs // 2, BLOCK_K // 2, num_stages=STAGES):
        pairs = start + tl.arange(0, BLOCK_K // 2)
        is_pair = pairs < num_inputs // 2
        packed = tl.load(block_rows + pairs[:, None], mask=is_pair[:, None], other=0).to(tl.int32)
        exponent = tl.load(scale_rows + pairs[:, None] // 16, mask=is_pair[:, None], other=0).to(tl.int32)
        scale = (exponent << 23).to(tl.float32, bitcast=True)  # 2^(exponent - 127)
        is_x = is_slot[:, None] & is_pair[None, :]
        even = tl.load(x_rows + 2 * pairs[None, :], mask=is_x, other=0.0)
        odd = tl.load(x_rows + 2 * pairs[None, :] + 1, mask=is_x, other=0.0)
        acc = tl.dot(even, (_unpack(packed & 15) * scale).to(even.dtype), acc, input_precision="ieee")
        acc = tl.dot(odd, (_unpack(packed >> 4) * scale).to(odd.dtype), acc, input_precision="ieee")
    if HAS_BIAS:
        bias = tl.load(bias_ptr + expert * num_outputs + cols, mask=is_col, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    y_offsets = slots.to(tl.int64)[:, None] * num_outputs + cols[None, :]
    tl.store(y_ptr + y_offsets, acc.to(y_ptr.dtype.element_ty), mask=is_slot[:, None] & is_col[None, :])


def _tile(block_m: int, dtype: torch.dtype) -> ExpertTile:
    """Many columns of few inputs: unpacking takes registers."""
    if dtype == torch.float32:
        return ExpertTile(32, 64, 4, 1)
    return ExpertTile(64, 128, 4, 3) if block_m <= 64 else ExpertTile(128, 64, 8, 3)


def mxfp4_moe(
    x: Tensor,
    blocks: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    sorted_token_ids: Tensor,
    expert_ids: Tensor,
    num_tokens_post_padded: Tensor,
    top_k: int,
) -> Tensor:
    """y[slot] = weight[expert of slot] @ x[slot // top_k] (+ bias[expert of slot]), summed in fp32.

    A weight is exact in bf16; in fp16 where its size lies in [2^-24, 65504].

    Shapes:  x: [num_rows, num_inputs], rows may be strided; blocks: [num_experts, num_outputs, num_inputs / 32, 16];
             scales: [num_experts, num_outputs, num_inputs / 32]; bias: [num_experts, num_outputs]; y: [num_rows *
             top_k, num_outputs]; the rest as moe_align returns it.
    Dtypes:  x and bias bf16, fp16 or fp32; blocks and scales uint8; integers int32.
    Errors:  UnsupportedError for another dtype, or blocks of slots that have more rows than a tile.
    """
    check_dtypes("mxfp4_moe", x=x, bias=bias)
    num_outputs, num_inputs = blocks.shape[1], 32 * blocks.shape[2]
    num_slots, num_row_tiles = len(x) * top_k, expert_ids.numel()
    if num_slots == 0:
        return x.new_empty(0, num_outputs)
    if x.stride(1) != 1:
        x = x.contiguous()
    y = torch.empty((num_slots, num_outputs), dtype=x.dtype, device=x.device)
    block_size = sorted_token_ids.numel() // num_row_tiles
    block_m = tile_rows(block_size)
    tile = _tile(block_m, x.dtype)
    num_col_tiles = triton.cdiv(num_outputs, tile.block_n)
    _mxfp4_moe_kernel[(num_row_tiles * num_col_tiles,)](
        x, blocks.contiguous(), scales.contiguous(), bias, y, sorted_token_ids, expert_ids, num_tokens_post_padded,
        x.stride(0), num_slots, num_outputs, num_inputs, num_row_tiles, num_col_tiles, block_size,
        TOP_K=top_k, HAS_BIAS=bias is not None,
        BLOCK_M=block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, STAGES=tile.num_stages,
        num_warps=tile.num_warps, **dependent_launch(x.device),
    )  # fmt: skip
    return y
