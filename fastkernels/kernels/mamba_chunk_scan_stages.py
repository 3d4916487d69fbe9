"""Mamba-2's state space over prompts in stages, as the state space dual (https://arxiv.org/abs/2405.21060).

Decays of all chunks at once, then the states between chunks, then the outputs of all chunks at once, each from the
state that its chunk begins with. States are handed on in one of two ways: by a program a head that goes from chunk to
chunk, whose only work is one product each, or, where those programs would be too few to fill a GPU, by a product of
every chunk at once and a pass over their sums.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

from typing import NamedTuple

import torch
from torch import Tensor

from fastkernels.kernels.backend import (
    dependent_launch,
    let_dependents_start,
    num_sms,
    tl,
    triton,
    wait_for_dependencies,
)
from fastkernels.kernels.chunk_decays import dot, sum_decays
from fastkernels.kernels.mamba_ssm import softplus
from fastkernels.kernels.sequence_chunks import chunk_of, first_number, num_chunks

_LEAST = 16
"""Of a side of a matrix product on tensor cores."""
_LEAST_TOKENS = 128
"""A sequence on average, of stages. Also bounds their scratch: a sequence has a number that may stand for no chunk."""
_STAGED_SIZES = 64, 128
"""Least of heads and states in columns, and most of states: more do not leave room for two chunks' tiles."""
_LEAST_PROGRAMS = 64
"""Of heads and sequences, to hand states on from chunk to chunk."""
_PROGRAMS_AN_SM = 4
"""Of outputs, at least, where that takes fewer heads a program."""
_DECAY_HEADS = 8
_PASSED_COLS = 32
"""Of a state, that a program passes on."""
_LOG2_E = tl.constexpr(1.4426950408889634)
_TINY = tl.constexpr(1.2e-38)
_WHERE = ("starts_ptr", "slots_ptr", "holds_ptr")


class ScanPlan(NamedTuple):
    """How the stages are cut and compiled.

    chunk: rows; most_heads: of a group that one program of outputs goes through, with one C B^T for all; state_cols:
    of a program of states; states_ and outputs_warps, _stages: of these kernels; is_passed: states by chunks at once.
    """

    chunk: int = 128
    most_heads: int = 16
    state_cols: int = 64
    states_warps: int = 4
    states_stages: int = 3
    outputs_warps: int = 8
    outputs_stages: int = 3
    is_passed: bool = False


@triton.jit(do_not_specialize=["num_seqs"], do_not_specialize_on_alignment=_WHERE)
def _decays_kernel(
    dt_ptr, a_log_ptr, dt_bias_ptr, starts_ptr, decays_ptr, ends_ptr,
    dt_stride, num_seqs, num_rows, num_heads, dt_min, dt_max,
    CHUNK: tl.constexpr, BLOCK_H: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Of a chunk, by head and row: the logarithm to base 2 of the decays' product up to the row, what fp32 drops of it,
    that less the step's logarithm, and what reaches the chunk's end of the row's step. Of the chunk its whole decay."""
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    number = tl.program_id(0)
    _, first, end = chunk_of(starts_ptr, num_seqs, number, CHUNK)
    if first >= end:
        return
    rows, heads = tl.arange(0, CHUNK), tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    row, is_head = first.to(tl.int64) + rows, heads < num_heads
    is_there = (row < end)[:, None] & is_head[None, :]
    rate = -tl.exp(tl.load(a_log_ptr + heads, mask=is_head, other=0.0).to(tl.float32)) * _LOG2_E
    bias = tl.load(dt_bias_ptr + heads, mask=is_head, other=0.0).to(tl.float32)
    step = tl.load(dt_ptr + row[:, None] * dt_stride + heads[None, :], mask=is_there, other=0.0).to(tl.float32)
    step = tl.minimum(tl.maximum(softplus(step + bias[None, :]), dt_min), dt_max)
    step = tl.where(is_there, step, 0.0)
    total, low, last, last_low = sum_decays(step * rate[None, :], True)
    rest = tl.exp2((last[None, :] - total) + (last_low[None, :] - low)) * step
    place, plane = decays_ptr + heads[None, :] * num_rows + number * CHUNK + rows[:, None], num_heads * num_rows
    tl.store(place, total, mask=is_head[None, :])
    tl.store(place + plane, low, mask=is_head[None, :])
    tl.store(place + 2 * plane, low - tl.log2(tl.maximum(step, _TINY)), mask=is_head[None, :])
    tl.store(place + 3 * plane, rest, mask=is_head[None, :])
    tl.store(ends_ptr + number * num_heads + heads, tl.exp2(last), mask=is_head)


@triton.jit
def tile_of(part, head_dim, state_size, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    """Of a head's state cut into tiles: columns of heads and of states, and which there are."""
    num = tl.cdiv(state_size, BLOCK_N)
    p, n = part // num * BLOCK_P + tl.arange(0, BLOCK_P), part % num * BLOCK_N + tl.arange(0, BLOCK_N)
    return p, n, p < head_dim, n < state_size


@triton.jit
def rows_of(ptr, first, count, stride, columns, is_column, ROWS: tl.constexpr):
    """Rows from `first` on, of which there are `count`; zeros behind them."""
    rows = tl.arange(0, ROWS)
    at = ptr + first.to(tl.int64) * stride + (rows[:, None] * stride + columns[None, :])
    return tl.load(at, mask=(rows < count)[:, None] & is_column[None, :], other=0.0)


@triton.jit
def chunk_state(
    state, x_ptr, b_ptr, rest_ptr, first, end, is_p, is_n, p, n, x_stride, b_stride,
    CHUNK: tl.constexpr, IS_EXACT: tl.constexpr,
):  # fmt: skip
    """state + B^T diag(rest) x of a chunk's rows: [state_size, head_dim], in fp32."""
    rest = tl.load(rest_ptr + tl.arange(0, CHUNK))
    x = rows_of(x_ptr, first, end - first, x_stride, p, is_p, CHUNK)
    b = rows_of(b_ptr, first, end - first, b_stride, n, is_n, CHUNK)
    return state + dot(tl.trans(b), x.to(tl.float32) * rest[:, None], IS_EXACT)


@triton.jit(do_not_specialize_on_alignment=_WHERE)
def _states_kernel(
    x_ptr, b_ptr, rests_ptr, ends_ptr, states_ptr, starts_ptr, slots_ptr, holds_ptr, begins_ptr,
    x_stride, x_head_stride, b_stride, b_group_stride, slot_stride, num_rows,
    num_heads, heads_a_group, head_dim, state_size, num_parts,
    CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, IS_EXACT: tl.constexpr,
    STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Of a sequence, a head and a part of its state: the state that every chunk begins with, and the last."""
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    head, part, seq = tl.program_id(0) // num_parts, tl.program_id(0) % num_parts, tl.program_id(1)
    p, n, is_p, is_n = tile_of(part, head_dim, state_size, BLOCK_P, BLOCK_N)
    start, end = tl.load(starts_ptr + seq), tl.load(starts_ptr + seq + 1)
    if start == end:
        return
    inner, is_state = n[:, None] * head_dim + p[None, :], is_n[:, None] & is_p[None, :]
    size = head_dim * state_size
    slot = states_ptr + tl.load(slots_ptr + seq).to(tl.int64) * slot_stride + head * size
    place = slot + (p[None, :] * state_size + n[:, None])
    state = tl.load(place, mask=is_state & (tl.load(holds_ptr + seq) != 0), other=0.0).to(tl.float32)
    number = first_number(starts_ptr, seq, CHUNK)
    rests_ptr += head * num_rows
    x_ptr += head * x_head_stride
    b_ptr += head // heads_a_group * b_group_stride
    for i in tl.range(0, tl.cdiv(end - start, CHUNK), num_stages=STAGES):
        at = (number + i).to(tl.int64) * num_heads + head
        tl.store(begins_ptr + at * size + inner, state.to(begins_ptr.dtype.element_ty), mask=is_state)
        state = chunk_state(
            state * tl.load(ends_ptr + at), x_ptr, b_ptr, rests_ptr + (number + i) * CHUNK, start + i * CHUNK, end,
            is_p, is_n, p, n, x_stride, b_stride, CHUNK, IS_EXACT,
        )  # fmt: skip
    tl.store(place, state.to(states_ptr.dtype.element_ty), mask=is_state)


@triton.jit(do_not_specialize=["num_seqs"], do_not_specialize_on_alignment=_WHERE)
def _sums_kernel(
    x_ptr, b_ptr, rests_ptr, starts_ptr, sums_ptr,
    x_stride, x_head_stride, b_stride, b_group_stride, num_seqs, num_rows,
    num_heads, heads_a_group, head_dim, state_size, num_parts,
    CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, IS_EXACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Of a chunk, a head and a part of its state: what the chunk's own rows add to the state at its end."""
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    number, head = tl.program_id(0) // num_parts // num_heads, tl.program_id(0) // num_parts % num_heads
    _, first, end = chunk_of(starts_ptr, num_seqs, number, CHUNK)
    if first >= end:
        return
    p, n, is_p, is_n = tile_of(tl.program_id(0) % num_parts, head_dim, state_size, BLOCK_P, BLOCK_N)
    state = chunk_state(
        tl.zeros([BLOCK_N, BLOCK_P], tl.float32), x_ptr + head * x_head_stride,
        b_ptr + head // heads_a_group * b_group_stride,
        rests_ptr + head * num_rows + number * CHUNK, first, end,
        is_p, is_n, p, n, x_stride, b_stride, CHUNK, IS_EXACT,
    )  # fmt: skip
    at = (number.to(tl.int64) * num_heads + head) * head_dim * state_size
    place = sums_ptr + at + (n[:, None] * head_dim + p[None, :])
    tl.store(place, state, mask=is_n[:, None] & is_p[None, :])


@triton.jit(do_not_specialize_on_alignment=_WHERE)
def _pass_states_kernel(
    sums_ptr, ends_ptr, states_ptr, starts_ptr, slots_ptr, holds_ptr, begins_ptr,
    slot_stride, num_heads, head_dim, state_size, num_parts,
    CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Of a sequence and some elements of a head's state: as _states_kernel, from the sums of its chunks."""
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    head, part, seq = tl.program_id(0) // num_parts, tl.program_id(0) % num_parts, tl.program_id(1)
    p, n, is_p, is_n = tile_of(part, head_dim, state_size, BLOCK_P, BLOCK_N)
    inner, is_state = n[:, None] * head_dim + p[None, :], is_n[:, None] & is_p[None, :]
    size = head_dim * state_size
    start, end = tl.load(starts_ptr + seq), tl.load(starts_ptr + seq + 1)
    if start == end:
        return
    slot = states_ptr + tl.load(slots_ptr + seq).to(tl.int64) * slot_stride + head * size
    place = slot + (p[None, :] * state_size + n[:, None])
    state = tl.load(place, mask=is_state & (tl.load(holds_ptr + seq) != 0), other=0.0).to(tl.float32)
    number = first_number(starts_ptr, seq, CHUNK)
    for i in tl.range(0, tl.cdiv(end - start, CHUNK), num_stages=4):
        at = (number + i).to(tl.int64) * num_heads + head
        tl.store(begins_ptr + at * size + inner, state.to(begins_ptr.dtype.element_ty), mask=is_state)
        own = tl.load(sums_ptr + at * size + inner, mask=is_state, other=0.0)
        state = state * tl.load(ends_ptr + at) + own
    tl.store(place, state.to(states_ptr.dtype.element_ty), mask=is_state)


@triton.jit(do_not_specialize=["num_seqs", "heads_a_program"], do_not_specialize_on_alignment=_WHERE)
def _outputs_kernel(
    x_ptr, b_ptr, c_ptr, d_ptr, decays_ptr, begins_ptr, starts_ptr, y_ptr,
    x_stride, x_head_stride, b_stride, b_group_stride, c_stride, c_group_stride, num_seqs, num_rows,
    num_heads, num_groups, heads_a_group, heads_a_program, head_dim, state_size,
    CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, IS_EXACT: tl.constexpr,
    STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Of a chunk and some heads of a group, which share C B^T: y."""
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    shares, num_p = tl.cdiv(heads_a_group, heads_a_program), tl.cdiv(head_dim, BLOCK_P)
    share, group = tl.program_id(0) // num_p % shares, tl.program_id(0) // num_p // shares % num_groups
    number = tl.program_id(0) // num_p // shares // num_groups
    _, first, end = chunk_of(starts_ptr, num_seqs, number, CHUNK)
    if first >= end:
        return
    rows, n = tl.arange(0, CHUNK), tl.arange(0, BLOCK_N)
    p = tl.program_id(0) % num_p * BLOCK_P + tl.arange(0, BLOCK_P)
    is_p, is_n = p < head_dim, n < state_size
    b = rows_of(b_ptr + group * b_group_stride, first, end - first, b_stride, n, is_n, CHUNK)
    c = rows_of(c_ptr + group * c_group_stride, first, end - first, c_stride, n, is_n, CHUNK)
    products = dot(c, tl.trans(b), IS_EXACT)
    plane, size = num_heads * num_rows, head_dim * state_size
    begins_ptr += number.to(tl.int64) * num_heads * size
    y_at = y_ptr + first.to(tl.int64) * num_heads * head_dim + (rows[:, None] * (num_heads * head_dim) + p[None, :])
    begin = group * heads_a_group + share * heads_a_program
    for head in tl.range(begin, tl.minimum(begin + heads_a_program, (group + 1) * heads_a_group), num_stages=STAGES):
        x = rows_of(x_ptr + head * x_head_stride, first, end - first, x_stride, p, is_p, CHUNK)
        state_at = begins_ptr + head * size + (n[:, None] * head_dim + p[None, :])
        state = tl.load(state_at, mask=is_n[:, None] & is_p[None, :], other=0.0)
        logs = decays_ptr + (head * num_rows + number * CHUNK) + rows
        total, low, source = tl.load(logs), tl.load(logs + plane), tl.load(logs + 2 * plane)
        apart = (total[:, None] - total[None, :]) + (low[:, None] - source[None, :])
        pairs = products * tl.exp2(tl.where(rows[:, None] >= rows[None, :], apart, float("-inf")))
        y = dot(c, state, IS_EXACT) * tl.exp2(total)[:, None] + dot(pairs, x, IS_EXACT)
        y += tl.load(d_ptr + head).to(tl.float32) * x.to(tl.float32)
        is_y = (rows < end - first)[:, None] & is_p[None, :]
        tl.store(y_at + head * head_dim, y.to(y_ptr.dtype.element_ty), mask=is_y)


def scan_plan(num_tokens: int, num_seqs: int, num_heads: int, head_dim: int, state_size: int) -> ScanPlan | None:
    """Of bf16: the stages' plan, None for the scan in sequence. By what is known without reading lengths."""
    least, most = _STAGED_SIZES
    sizes = triton.next_power_of_2(head_dim), triton.next_power_of_2(state_size)
    if min(sizes) < least or sizes[1] > most or num_tokens < _LEAST_TOKENS * num_seqs:
        return None
    return ScanPlan(is_passed=num_heads * num_seqs < _LEAST_PROGRAMS)


def scan_in_stages(
    plan: ScanPlan,
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
    is_exact: bool = False,
) -> Tensor:
    """As mamba_chunk_scan, of tensors whose last axes are dense.

    is_exact: products of fp32, and states between chunks in fp32; of bf16 otherwise.
    """
    num_tokens, num_heads, head_dim = x.shape
    num_groups, state_size = b.shape[1:]
    num_seqs, chunk = len(state_indices), plan.chunk
    num_numbers = num_chunks(num_tokens, num_seqs, chunk)
    num_rows, heads_a_group = num_numbers * chunk, num_heads // num_groups
    block_p = max(_LEAST, min(_STAGED_SIZES[0], triton.next_power_of_2(head_dim)))
    block_n = max(_LEAST, triton.next_power_of_2(state_size))
    state_cols = min(plan.state_cols, block_n)
    num_p = triton.cdiv(head_dim, block_p)
    num_parts = num_p * triton.cdiv(state_size, state_cols)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    decays = torch.empty((4, num_heads, num_rows), dtype=torch.float32, device=x.device)
    ends = torch.empty((num_numbers, num_heads), dtype=torch.float32, device=x.device)
    shape = (num_numbers, num_heads, state_size, head_dim)
    begins = torch.empty(shape, dtype=torch.float32 if is_exact else torch.bfloat16, device=x.device)
    launch = dependent_launch(x.device)
    _decays_kernel[(num_numbers, triton.cdiv(num_heads, _DECAY_HEADS))](
        dt, a_log, dt_bias, query_start_loc, decays, ends,
        dt.stride(0), num_seqs, num_rows, num_heads, *dt_limit,
        CHUNK=chunk, BLOCK_H=_DECAY_HEADS, num_warps=4, **launch,
    )  # fmt: skip
    sizes = (num_heads, heads_a_group, head_dim, state_size, num_parts)
    tile = {"CHUNK": chunk, "BLOCK_P": block_p, "IS_EXACT": is_exact}
    places = (ssm_states, query_start_loc, state_indices, has_initial_state, begins)
    if plan.is_passed:
        sums = torch.empty(shape, dtype=torch.float32, device=x.device)
        _sums_kernel[(num_numbers * num_heads * num_parts,)](
            x, b, decays[3], query_start_loc, sums, *x.stride()[:2], *b.stride()[:2], num_seqs, num_rows, *sizes,
            **tile, BLOCK_N=state_cols, num_warps=plan.states_warps, **launch,
        )  # fmt: skip
        num_parts = num_p * triton.cdiv(state_size, _PASSED_COLS)
        _pass_states_kernel[(num_heads * num_parts, num_seqs)](
            sums, ends, *places, ssm_states.stride(0), num_heads, head_dim, state_size, num_parts,
            CHUNK=chunk, BLOCK_P=block_p, BLOCK_N=_PASSED_COLS, num_warps=4, **launch,
        )  # fmt: skip
    else:
        _states_kernel[(num_heads * num_parts, num_seqs)](
            x, b, decays[3], ends, *places, *x.stride()[:2], *b.stride()[:2], ssm_states.stride(0), num_rows, *sizes,
            **tile, BLOCK_N=state_cols, STAGES=plan.states_stages, num_warps=plan.states_warps, **launch,
        )  # fmt: skip
    most = max(1, num_numbers * num_heads // (_PROGRAMS_AN_SM * num_sms(x.device)))
    heads_a_program = min(plan.most_heads, heads_a_group, most)
    num_shares = triton.cdiv(heads_a_group, heads_a_program)
    _outputs_kernel[(num_numbers * num_groups * num_shares * num_p,)](
        x, b, c, d, decays, begins, query_start_loc, y, *x.stride()[:2], *b.stride()[:2], *c.stride()[:2],
        num_seqs, num_rows, num_heads, num_groups, heads_a_group, heads_a_program, head_dim, state_size,
        **tile, BLOCK_N=block_n, STAGES=plan.outputs_stages, num_warps=plan.outputs_warps, **launch,
    )  # fmt: skip
    return y
