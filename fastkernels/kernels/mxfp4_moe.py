"""Products of slots with their experts' matrices in MXFP4, unpacked in registers: device memory gives half a byte each.

A tile's packed weights are copied as they are, 16 bytes at once, which are 32 inputs under one scale. Codes become
16-bit floats by integer arithmetic on both of a byte, and go through shared memory to a single product. Activations in
fp32 have a kernel of their own, of two products: of the even inputs with the low halves, of the odd ones with the high
halves. Where an expert gets very many rows, weights are unpacked once a call and torch's grouped product follows.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

from typing import NamedTuple

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
from fastkernels.kernels.moe_grouped_gemm import (
    ExpertTile,
    by_grouped_mm,
    store_zeros,
    supports_grouped_mm,
    swizzled,
    tile_rows,
)

GROUPED_MM_ROWS = 512
"""Rows an expert gets on average from which weights are unpacked for torch._grouped_mm. Measured at 128 rows: 4.2 ms
against 1.7 ms, of which 2.9 ms do not grow with rows; lines through both meet near 490."""


class PackedTile(NamedTuple):
    """As ExpertTile, for 16-bit activations.

    is_turned: weights are the left side of the product, of which a warp group takes 64 rows, and slots the right one,
    of which it takes 8 or more.
    """

    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    is_turned: bool


@triton.jit
def _value(codes):
    """The value of four bits: a sign, two bits of exponent, one of mantissa."""
    size = codes & 7
    exponent = (size >> 1) - 1
    value = tl.where(size < 2, 0.5 * size, (1.0 + 0.5 * (size & 1)) * (1 << tl.maximum(exponent, 0)).to(tl.float32))
    return tl.where(codes >= 8, -value, value)


@triton.jit(do_not_specialize=["num_slots", "num_row_tiles"])
def _mxfp4_moe_fp32_kernel(
    x_ptr, blocks_ptr, scales_ptr, bias_ptr, y_ptr, sorted_ptr, expert_ids_ptr, padded_ptr,
    x_stride, num_slots, num_outputs, num_inputs, num_row_tiles, num_col_tiles, block_size,
    TOP_K: tl.constexpr, HAS_BIAS: tl.constexpr,
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
        acc = tl.dot(even, (_value(packed & 15) * scale).to(even.dtype), acc, input_precision="ieee")
        acc = tl.dot(odd, (_value(packed >> 4) * scale).to(odd.dtype), acc, input_precision="ieee")
    if HAS_BIAS:
        bias = tl.load(bias_ptr + expert * num_outputs + cols, mask=is_col, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    y_offsets = slots.to(tl.int64)[:, None] * num_outputs + cols[None, :]
    tl.store(y_ptr + y_offsets, acc.to(y_ptr.dtype.element_ty), mask=is_slot[:, None] & is_col[None, :])


@triton.jit
def _unpacked(packed, exponents, dtype: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Weights [BLOCK_N, BLOCK_K] of bytes [BLOCK_N, BLOCK_K / 2] and scales [BLOCK_N, BLOCK_K / 32].

    A code's sign, exponent and mantissa go where the float has its own: that is the value times 2^(1 - the float's
    bias), 0.5 a subnormal number, exactly. Two multiplications mend it. The scale cannot take the other factor in: the
    exponent of the product may not fit, and ptxas then multiplies bf16 one by one.
    """
    pairs = packed.to(tl.int32)
    unit: tl.constexpr = 2.0**126 if dtype == tl.bfloat16 else 2.0**14
    if dtype == tl.bfloat16:
        sizes = (pairs * ((1 << 6) + (1 << 18))) & ((7 << 6) + (7 << 22))
        scale = (exponents.to(tl.int16) << 7).to(tl.bfloat16, bitcast=True)  # 2^(exponent - 127)
    else:
        sizes = (pairs * ((1 << 9) + (1 << 21))) & ((7 << 9) + (7 << 25))
        scale = (exponents.to(tl.int32) << 23).to(tl.float32, bitcast=True)
    bits = sizes | ((pairs * ((1 << 12) + (1 << 24))) & -0x7FFF8000)
    low, high = bits.to(tl.int16).to(dtype, bitcast=True), (bits >> 16).to(tl.int16).to(dtype, bitcast=True)
    values = tl.join(low, high).reshape(BLOCK_N, BLOCK_K // 32, 32).to(scale.dtype) * unit
    return (values * scale[:, :, None]).to(dtype).reshape(BLOCK_N, BLOCK_K)


@triton.jit(do_not_specialize=["num_slots", "num_row_tiles"])
def _mxfp4_moe_kernel(
    x_ptr, blocks_ptr, scales_ptr, bias_ptr, y_ptr, sorted_ptr, expert_ids_ptr, padded_ptr,
    x_stride, num_slots, num_outputs, num_bytes, num_scales, num_row_tiles, num_col_tiles, block_size,
    TOP_K: tl.constexpr, HAS_BIAS: tl.constexpr, IS_EVEN: tl.constexpr, IS_TURNED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """num_bytes and num_scales are of a row of weights: their multiples of 16 let copies be wide."""
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    row_tile, col_tile = swizzled(tl.program_id(0), num_row_tiles, num_col_tiles, 8)
    rows = tl.arange(0, BLOCK_M)
    # All three are asked for before one is waited for; what lies behind the last tile in use is defined too.
    num_padded = tl.load(padded_ptr)
    slots = tl.load(sorted_ptr + row_tile * block_size + rows, mask=rows < block_size, other=num_slots)
    expert = tl.load(expert_ids_ptr + row_tile).to(tl.int64)
    cols = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    if row_tile * block_size >= num_padded:
        store_zeros(y_ptr, slots, cols, num_slots, num_outputs)
        return
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    is_slot = slots < num_slots
    is_col = cols < num_outputs
    x_rows = x_ptr + (slots // TOP_K).to(tl.int64)[:, None] * x_stride
    outputs = expert * num_outputs + tl.minimum(cols, num_outputs - 1)
    block_rows = blocks_ptr + outputs[:, None] * num_bytes
    scale_rows = scales_ptr + outputs[:, None] * num_scales
    groups = tl.arange(0, BLOCK_K // 32)[None, :]
    # A scale is too small for the asynchronous copies that tiles come by: it is read one tile ahead.
    exponents = tl.load(scale_rows + groups, mask=groups < num_scales, other=0)
    if IS_TURNED:
        acc = tl.zeros([BLOCK_N, BLOCK_M], dtype=tl.float32)
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for tile in tl.range(0, tl.cdiv(num_scales, BLOCK_K // 32), num_stages=STAGES):
        pairs = tile * (BLOCK_K // 2) + tl.arange(0, BLOCK_K // 2)
        inputs = tile * BLOCK_K + tl.arange(0, BLOCK_K)
        if IS_EVEN:
            packed = tl.load(block_rows + pairs[None, :])
            x = tl.load(x_rows + inputs[None, :], mask=is_slot[:, None], other=0.0)
        else:
            packed = tl.load(block_rows + pairs[None, :], mask=pairs[None, :] < num_bytes, other=0)
            is_x = is_slot[:, None] & (inputs[None, :] < 2 * num_bytes)
            x = tl.load(x_rows + inputs[None, :], mask=is_x, other=0.0)
        ahead = groups + (tile + 1) * (BLOCK_K // 32)
        next_exponents = tl.load(scale_rows + ahead, mask=ahead < num_scales, other=0)
        weights = _unpacked(packed, exponents, dtype, BLOCK_N, BLOCK_K)
        acc = tl.dot(weights, x.T, acc) if IS_TURNED else tl.dot(x, weights.T, acc)
        exponents = next_exponents
    if IS_TURNED:
        acc = acc.T
    if HAS_BIAS:
        bias = tl.load(bias_ptr + expert * num_outputs + cols, mask=is_col, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    y_offsets = slots.to(tl.int64)[:, None] * num_outputs + cols[None, :]
    tl.store(y_ptr + y_offsets, acc.to(dtype), mask=is_slot[:, None] & is_col[None, :])


@triton.jit
def _unpack_kernel(
    blocks_ptr, scales_ptr, weight_ptr, num_rows, num_bytes, num_scales,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    dtype: tl.constexpr = weight_ptr.dtype.element_ty
    rows = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
    is_row = rows < num_rows
    pairs = (tl.program_id(1) * (BLOCK_K // 2) + tl.arange(0, BLOCK_K // 2))[None, :]
    packed = tl.load(blocks_ptr + rows * num_bytes + pairs, mask=is_row & (pairs < num_bytes), other=0)
    groups = (tl.program_id(1) * (BLOCK_K // 32) + tl.arange(0, BLOCK_K // 32))[None, :]
    exponents = tl.load(scales_ptr + rows * num_scales + groups, mask=is_row & (groups < num_scales), other=0)
    weights = _unpacked(packed, exponents, dtype, BLOCK_N, BLOCK_K)
    inputs = (tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K))[None, :]
    tl.store(weight_ptr + rows * (2 * num_bytes) + inputs, weights, mask=is_row & (inputs < 2 * num_bytes))


def unpack_mxfp4(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """[num_experts, num_outputs, num_inputs] in bf16 or fp16, as exact as the weights of mxfp4_moe."""
    num_experts, num_outputs, num_scales = scales.shape
    num_rows = num_experts * num_outputs
    weight = torch.empty((num_experts, num_outputs, 32 * num_scales), dtype=dtype, device=blocks.device)
    _unpack_kernel[(triton.cdiv(num_rows, 32), triton.cdiv(num_scales, 8))](
        blocks.contiguous(), scales.contiguous(), weight, num_rows, 16 * num_scales, num_scales,
        BLOCK_N=32, BLOCK_K=256, num_warps=4, **dependent_launch(blocks.device),
    )  # fmt: skip
    return weight


def tile_of(block_m: int, dtype: torch.dtype) -> PackedTile | ExpertTile:
    """As measured at GPT-OSS-120B's sizes (benchmarks/results/h200/mxfp4_moe.json)."""
    if dtype == torch.float32:
        return ExpertTile(32, 64, 4, 1)
    if block_m <= 16:
        return PackedTile(64, 128, 4, 4, True)
    if block_m == 32:
        return PackedTile(128, 64, 4, 4, True)
    if block_m == 64:
        return PackedTile(128, 64, 4, 3, False)
    return PackedTile(128, 64, 8, 4, False)


def mxfp4_moe(
    x: Tensor,
    blocks: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    sorted_token_ids: Tensor,
    expert_ids: Tensor,
    num_tokens_post_padded: Tensor,
    top_k: int,
    ep_size: int = 1,
    tile: PackedTile | ExpertTile | None = None,
) -> Tensor:
    """y[slot] = weight[expert of slot] @ x[slot // top_k] (+ bias[expert of slot]), summed in fp32; zero where the
    slot is left out.

    ep_size: about one slot in so many is not left out.

    A weight is exact in bf16; in fp16 where its size lies in [2^-24, 65504].

    Shapes:  x: [num_rows, num_inputs], rows may be strided; blocks: [num_experts, num_outputs, num_inputs / 32, 16];
             scales: [num_experts, num_outputs, num_inputs / 32]; bias: [num_experts, num_outputs]; y: [num_rows *
             top_k, num_outputs]; the rest as moe_align returns it. tile is for benchmarks; an ExpertTile asks for the
             kernel of fp32.
    Dtypes:  x and bias bf16, fp16 or fp32; blocks and scales uint8; integers int32.
    Errors:  UnsupportedError for another dtype, or blocks of slots that have more rows than a tile.
    """
    check_dtypes("mxfp4_moe", x=x, bias=bias)
    num_experts, num_outputs, num_scales = scales.shape
    num_slots, num_row_tiles = len(x) * top_k, expert_ids.numel()
    if num_slots == 0:
        return x.new_empty(0, num_outputs)
    if x.stride(1) != 1:
        x = x.contiguous()
    has_many_rows = num_slots >= GROUPED_MM_ROWS * num_experts * ep_size
    if tile is None and has_many_rows and supports_grouped_mm(x, blocks.flatten(2)):
        weight = unpack_mxfp4(blocks, scales, x.dtype)
        return by_grouped_mm(x, weight, bias, sorted_token_ids, expert_ids, num_tokens_post_padded, top_k)
    y = torch.empty((num_slots, num_outputs), dtype=x.dtype, device=x.device)
    block_size = sorted_token_ids.numel() // num_row_tiles
    block_m = tile_rows(block_size)
    tile = tile or tile_of(block_m, x.dtype)
    num_col_tiles = triton.cdiv(num_outputs, tile.block_n)
    tensors = (x, blocks.contiguous(), scales.contiguous(), bias, y, sorted_token_ids, expert_ids)
    sizes = (num_row_tiles, num_col_tiles, block_size)
    options = {
        **{"TOP_K": top_k, "HAS_BIAS": bias is not None, "BLOCK_M": block_m, "BLOCK_N": tile.block_n},
        **{"BLOCK_K": tile.block_k, "STAGES": tile.num_stages, "num_warps": tile.num_warps},
        **dependent_launch(x.device),
    }
    grid = (num_row_tiles * num_col_tiles,)
    if isinstance(tile, PackedTile):
        options |= {"IS_EVEN": 32 * num_scales % tile.block_k == 0, "IS_TURNED": tile.is_turned}
        _mxfp4_moe_kernel[grid](
            *tensors, num_tokens_post_padded, x.stride(0), num_slots, num_outputs, 16 * num_scales, num_scales, *sizes,
            **options,
        )  # fmt: skip
    else:
        _mxfp4_moe_fp32_kernel[grid](
            *tensors, num_tokens_post_padded, x.stride(0), num_slots, num_outputs, 32 * num_scales, *sizes, **options
        )
    return y
