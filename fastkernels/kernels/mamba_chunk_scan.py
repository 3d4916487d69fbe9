"""Mamba-2's state space over prompts.

In sequence: a program a sequence, head and part of it goes from chunk to chunk. For what is exact, small or short; what
is long goes in stages, mamba_chunk_scan_stages.py.
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
from fastkernels.kernels.chunk_decays import decays_between, dot, sum_decays
from fastkernels.kernels.mamba_chunk_scan_stages import scan_in_stages, scan_plan
from fastkernels.kernels.mamba_ssm import softplus

_CHUNK = 64
_SMALL_CHUNK = 32
"""Of heads and states below 64. With 64 rows Triton 3.6 chooses warp group products; on an H200 some rows of y were
wrong then where heads had 16 columns, and only there. 32 rows stay with the products of a warp."""
_EXACT = 16
"""Rows and columns of a tile in float32: products without tensor cores hold whole rows in registers."""
_LEAST = 16
"""Of a side of a matrix product on tensor cores."""


@triton.jit
def _mamba_chunk_scan_kernel(
    x_ptr, dt_ptr, a_log_ptr, b_ptr, c_ptr, d_ptr, dt_bias_ptr, states_ptr, starts_ptr, slots_ptr, holds_ptr, y_ptr,
    x_stride, x_head_stride, dt_stride, b_stride, b_group_stride, c_stride, c_group_stride, slot_stride,
    num_heads, heads_a_group, head_dim, state_size, dt_min, dt_max,
    CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, IS_EXACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    head, seq = tl.program_id(0), tl.program_id(1)
    group = head // heads_a_group
    rows, p, n = tl.arange(0, CHUNK), tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    is_p, is_n = p < head_dim, n < state_size
    start, end = tl.load(starts_ptr + seq).to(tl.int64), tl.load(starts_ptr + seq + 1).to(tl.int64)
    if start == end:
        return
    holds = tl.load(holds_ptr + seq) != 0
    at = tl.load(slots_ptr + seq).to(tl.int64) * slot_stride + head * head_dim * state_size
    place = states_ptr + at + p[None, :] * state_size + n[:, None]
    is_state = is_p[None, :] & is_n[:, None]
    state = tl.load(place, mask=is_state & holds, other=0.0).to(tl.float32)  # [state_size, head_dim]
    rate = -tl.exp(tl.load(a_log_ptr + head).to(tl.float32))
    bias, skip = tl.load(dt_bias_ptr + head).to(tl.float32), tl.load(d_ptr + head).to(tl.float32)
    for first in range(start, end, CHUNK):
        row = first + rows
        is_row = row < end
        step = tl.load(dt_ptr + row * dt_stride + head, mask=is_row, other=0.0).to(tl.float32) + bias
        step = tl.where(is_row, tl.minimum(tl.maximum(softplus(step), dt_min), dt_max), 0.0)
        total, low, last, last_low = sum_decays(step * rate, True)
        x_at = x_ptr + row[:, None] * x_stride + head * x_head_stride + p[None, :]
        x = tl.load(x_at, mask=is_row[:, None] & is_p[None, :], other=0.0).to(tl.float32)
        b_at = b_ptr + row[:, None] * b_stride + group * b_group_stride + n[None, :]
        b = tl.load(b_at, mask=is_row[:, None] & is_n[None, :], other=0.0)
        c_at = c_ptr + row[:, None] * c_stride + group * c_group_stride + n[None, :]
        c = tl.load(c_at, mask=is_row[:, None] & is_n[None, :], other=0.0)
        pairs = dot(c, tl.trans(b), IS_EXACT) * decays_between(total, low, rows) * step[None, :]
        y = dot(pairs, x, IS_EXACT) + tl.exp(total)[:, None] * dot(c, state, IS_EXACT) + skip * x
        y_at = y_ptr + (row[:, None] * num_heads + head) * head_dim + p[None, :]
        tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=is_row[:, None] & is_p[None, :])
        rest = (tl.exp((last - total) + (last_low - low)) * step)[:, None] * x
        state = tl.exp(last) * state + dot(tl.trans(b), rest, IS_EXACT)
    tl.store(place, state, mask=is_state)


def mamba_chunk_scan(
    x: Tensor,
    dt: Tensor,
    a_log: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    dt_bias: Tensor,
    ssm_states: Tensor,
    query_start_loc: Tensor,
    state_indices: Tensor,
    has_initial_state: Tensor,
    dt_limit: tuple[float, float],
) -> Tensor:
    """MambaChunkScan; ssm_states is written to. Arguments as the op's, their last axes dense.

    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("mamba_chunk_scan", x=x, dt=dt, A_log=a_log, B=b, C=c, D=d, dt_bias=dt_bias, states=ssm_states)
    x, dt, b, c = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, dt, b, c))
    _, num_heads, head_dim = x.shape
    num_groups, state_size = b.shape[1:]
    is_exact = x.dtype != torch.bfloat16
    num_seqs = len(state_indices)
    plan = None if is_exact or not num_seqs else scan_plan(len(x), num_seqs, num_heads, head_dim, state_size)
    if plan is not None and x.numel():
        places = (query_start_loc, state_indices, has_initial_state)
        return scan_in_stages(plan, x, dt, a_log, b, c, d, dt_bias, ssm_states, *places, dt_limit)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block_p = max(_LEAST, min(_EXACT if is_exact else 64, triton.next_power_of_2(head_dim)))
    block_n = max(_LEAST, triton.next_power_of_2(state_size))
    chunk = _EXACT if is_exact else _CHUNK if min(block_p, block_n) >= _CHUNK else _SMALL_CHUNK
    grid = (num_heads, num_seqs, triton.cdiv(head_dim, block_p))
    if x.numel() and grid[1]:
        _mamba_chunk_scan_kernel[grid](
            x, dt, a_log, b, c, d, dt_bias, ssm_states, query_start_loc, state_indices, has_initial_state, y,
            *x.stride()[:2], dt.stride(0), *b.stride()[:2], *c.stride()[:2], ssm_states.stride(0),
            num_heads, num_heads // num_groups, head_dim, state_size, *dt_limit,
            CHUNK=chunk, BLOCK_P=block_p, BLOCK_N=block_n, IS_EXACT=is_exact,
            num_warps=4 if chunk == _SMALL_CHUNK else 8, num_stages=2, **dependent_launch(x.device),
        )  # fmt: skip
    return y
