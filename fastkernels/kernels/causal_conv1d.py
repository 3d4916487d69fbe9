"""Causal depthwise convolution over sequences whose last inputs are kept in a slot each."""
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

_BLOCK_C = 256
_BLOCK_T = 16
"""At least width - 1: the first program of a sequence alone reads its slot, and writes it."""


@triton.jit
def _activate(y, SILU: tl.constexpr):
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    return y


@triton.jit
def _causal_conv1d_kernel(
    x_ptr, weight_ptr, bias_ptr, states_ptr, starts_ptr, slots_ptr, holds_ptr, y_ptr, x_stride, slot_stride, dim,
    WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    seq, block = tl.program_id(0), tl.program_id(1)
    cols = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    start, end = tl.load(starts_ptr + seq).to(tl.int64), tl.load(starts_ptr + seq + 1).to(tl.int64)
    num_rows = end - start
    if block * BLOCK_T >= num_rows:
        return
    is_col = cols < dim
    holds = tl.load(holds_ptr + seq) != 0
    slot = states_ptr + tl.load(slots_ptr + seq).to(tl.int64) * slot_stride
    rows = block * BLOCK_T + tl.arange(0, BLOCK_T)
    is_here = (rows < num_rows)[:, None] & is_col[None, :]
    total = tl.zeros([BLOCK_T, BLOCK_C], dtype=tl.float32)
    for k in tl.static_range(WIDTH):
        at = (rows - (WIDTH - 1) + k)[:, None]
        value = tl.load(x_ptr + (start + at) * x_stride + cols[None, :], mask=is_here & (at >= 0), other=0.0)
        value = value.to(tl.float32)
        if k < WIDTH - 1:  # of the first block alone: every later one has WIDTH - 1 rows before it
            kept = slot + (at + WIDTH - 1) * dim + cols[None, :]
            value += tl.load(kept, mask=is_here & (at < 0) & holds, other=0.0).to(tl.float32)
        total += value * tl.load(weight_ptr + cols * WIDTH + k, mask=is_col, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        total += tl.load(bias_ptr + cols, mask=is_col, other=0.0).to(tl.float32)[None, :]
    y = _activate(total, SILU).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + (start + rows[:, None]) * dim + cols[None, :], y, mask=is_here)
    if block == 0:
        tl.debug_barrier()  # other threads of this program have read the slot
        for row in tl.static_range(WIDTH - 1):
            # Of the kept rows and the new ones in a line, the last WIDTH - 1. A kept row moves forward: an earlier
            # place is written before a later one is read, never after.
            last = num_rows - (WIDTH - 1) + row
            new = tl.load(x_ptr + (start + last) * x_stride + cols, mask=is_col & (last >= 0), other=0.0)
            old = tl.load(slot + (last + WIDTH - 1) * dim + cols, mask=is_col & (last < 0) & holds, other=0.0)
            tl.store(slot + row * dim + cols, tl.where(last >= 0, new, old), mask=is_col)


@triton.jit
def _causal_conv1d_update_kernel(
    x_ptr, weight_ptr, bias_ptr, states_ptr, slots_ptr, holds_ptr, y_ptr, x_stride, slot_stride, dim,
    WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    seq = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_col = cols < dim
    holds = tl.load(holds_ptr + seq) != 0
    slot = states_ptr + tl.load(slots_ptr + seq).to(tl.int64) * slot_stride + cols
    new = tl.load(x_ptr + seq * x_stride + cols, mask=is_col, other=0.0)
    last = tl.load(weight_ptr + cols * WIDTH + WIDTH - 1, mask=is_col, other=0.0).to(tl.float32)
    total = new.to(tl.float32) * last
    for k in tl.static_range(WIDTH - 1):
        kept = tl.load(slot + k * dim, mask=is_col & holds, other=0.0)
        total += kept.to(tl.float32) * tl.load(weight_ptr + cols * WIDTH + k, mask=is_col, other=0.0).to(tl.float32)
        if k > 0:
            tl.store(slot + (k - 1) * dim, kept, mask=is_col)
    if WIDTH > 1:
        tl.store(slot + (WIDTH - 2) * dim, new, mask=is_col)
    if HAS_BIAS:
        total += tl.load(bias_ptr + cols, mask=is_col, other=0.0).to(tl.float32)
    tl.store(y_ptr + seq * dim + cols, _activate(total, SILU).to(y_ptr.dtype.element_ty), mask=is_col)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv_states: Tensor,
    query_start_loc: Tensor,
    state_indices: Tensor,
    has_initial_state: Tensor,
    max_query_len: int,
    is_silu: bool,
) -> Tensor:
    """CausalConv1d; conv_states is written to. Arguments as the op's, the last axis of x dense.

    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("causal_conv1d", x=x, weight=weight, bias=bias)
    x = x if x.stride(-1) == 1 else x.contiguous()
    dim, width = weight.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block_t = max(_BLOCK_T, triton.next_power_of_2(width - 1))
    grid = (len(state_indices), triton.cdiv(max_query_len, block_t), triton.cdiv(dim, _BLOCK_C))
    if x.numel() and grid[0]:
        _causal_conv1d_kernel[grid](
            x, weight.contiguous(), x if bias is None else bias, conv_states, query_start_loc, state_indices,
            has_initial_state, y, x.stride(0), conv_states.stride(0), dim,
            WIDTH=width, HAS_BIAS=bias is not None, SILU=is_silu, BLOCK_T=block_t, BLOCK_C=_BLOCK_C, num_warps=4,
            **dependent_launch(x.device),
        )  # fmt: skip
    return y


def causal_conv1d_update(
    x: Tensor,
    conv_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state_indices: Tensor,
    has_initial_state: Tensor,
    is_silu: bool,
) -> Tensor:
    """CausalConv1dUpdate; conv_states is written to. Arguments as the op's, the last axis of x dense.

    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("causal_conv1d_update", x=x, weight=weight, bias=bias)
    x = x if x.stride(-1) == 1 else x.contiguous()
    dim, width = weight.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        _causal_conv1d_update_kernel[(x.shape[0], triton.cdiv(dim, _BLOCK_C))](
            x, weight.contiguous(), x if bias is None else bias, conv_states, state_indices, has_initial_state, y,
            x.stride(0), conv_states.stride(0), dim,
            WIDTH=width, HAS_BIAS=bias is not None, SILU=is_silu, BLOCK_C=_BLOCK_C, num_warps=4,
            **dependent_launch(x.device),
        )  # fmt: skip
    return y
