"""The gated delta rule over prompts in three stages, of which only the second goes chunk after chunk.

1. Of every chunk at once: what its rows' errors are of its values and of its keys, the triangular system solved.
2. Of a sequence, head and part of its values: the state from chunk to chunk, two products each.
3. Of every chunk at once: the outputs, of the state before the chunk and of the values that its rows put there.

Stages as in https://github.com/fla-org/flash-linear-attention (fla/ops/gated_delta_rule).
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

from typing import NamedTuple

import torch
from torch import Tensor

from fastkernels.kernels.backend import dependent_launch, let_dependents_start, tl, triton, wait_for_dependencies
from fastkernels.kernels.chunk_decays import decays_between, dot, sum_decays
from fastkernels.kernels.sequence_chunks import chunk_of, first_number, num_chunks


class Stages(NamedTuple):
    """chunk: rows; leaf: rows of the system that are solved one by one; values: columns of v that a program takes.

    Carrying programs of 4 warps, 64 columns and 2 stages fit twice into the shared memory of an H200's multiprocessor.
    """

    chunk: int
    leaf: int
    solve_values: int
    solve_warps: int
    carry_values: int
    carry_warps: int
    carry_stages: int
    read_values: int
    read_warps: int


WIDE = Stages(
    chunk=64, leaf=16, solve_values=64, solve_warps=4, carry_values=64, carry_warps=4, carry_stages=2,
    read_values=128, read_warps=4,
)  # fmt: skip
SMALL = WIDE._replace(chunk=32, solve_values=32, carry_values=32, read_values=32)
"""Where heads of keys or values have up to 32 columns. Products of 64 rows and 16 columns were wrong on an H200 with
Triton 3.6 (mamba_chunk_scan.py); 32 rows stay with the products of a warp."""
MOST_KEY_SIZE = 128
"""A program holds all keys of its part of the state in registers: twice as many spill 472 bytes a thread."""

_LEAST = 16
"""Of a side of a matrix product on tensor cores."""
PLACE_POINTERS = ("starts_ptr", "slots_ptr", "holds_ptr")
"""Read a number at a time; where a step's prompts begin in them is to compile no other kernel."""


@triton.jit
def _product(a, b, IS_EXACT: tl.constexpr):
    if IS_EXACT:
        return tl.dot(a, b, input_precision="ieee")
    return tl.dot(a, b, input_precision="tf32")


@triton.jit
def invert(system, CHUNK: tl.constexpr, LEAF: tl.constexpr, IS_EXACT: tl.constexpr):
    """(1 + system)^-1 of [CHUNK, CHUNK] numbers that are 0 on and above the diagonal.

    The blocks of LEAF rows on the diagonal are solved side by side, row by row; two neighbours A and B with S below A
    then are [[A, 0], [-B S A, B]]. Powers of a system do not fit into float32, its inverse does.
    """
    BLOCKS: tl.constexpr = CHUNK // LEAF
    block, at, rows = tl.arange(0, BLOCKS), tl.arange(0, LEAF), tl.arange(0, CHUNK)
    is_own = block[:, None, None, None] == block[None, None, :, None]
    leaves = tl.sum(tl.where(is_own, tl.reshape(system, (BLOCKS, LEAF, BLOCKS, LEAF)), 0.0), axis=2)
    columns = tl.trans(leaves, 0, 2, 1)  # so that a row is summed out along the axis that is dropped
    solved = tl.zeros_like(columns) + tl.where(at[:, None] == at[None, :], 1.0, 0.0)[None, :, :]
    for step in range(1, LEAF):
        one = tl.sum(tl.where(at[None, None, :] == step, columns, 0.0), axis=2)
        row = -tl.sum(one[:, :, None] * solved, axis=1)
        solved += tl.where(at[None, :, None] == step, row[:, None, :], 0.0)
    inverse = tl.reshape(tl.where(is_own, solved[:, :, None, :], 0.0), (CHUNK, CHUNK))
    for level in tl.static_range(5):
        if (LEAF << level) < CHUNK:
            left, right = rows[:, None] // (LEAF << level), rows[None, :] // (LEAF << level)
            below = tl.where((left // 2 == right // 2) & (left != right), system, 0.0)
            inverse -= _product(_product(inverse, below, IS_EXACT), inverse, IS_EXACT)
    return inverse


@triton.jit(do_not_specialize=["num_seqs"], do_not_specialize_on_alignment=PLACE_POINTERS)
def _solve_kernel(
    k_ptr, v_ptr, g_ptr, beta_ptr, starts_ptr, w_ptr, u_ptr, rest_ptr, kept_ptr,
    k_stride, k_head_stride, v_stride, v_head_stride, g_stride, beta_stride,
    num_seqs, heads_a_key, key_dim, value_dim,
    CHUNK: tl.constexpr, LEAF: tl.constexpr, BLOCK_K: tl.constexpr, VALUES: tl.constexpr, BLOCK_V: tl.constexpr,
    IS_EXACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Of a chunk's rows: the new values are u - w @ state. Of each row `rest`, of the state `kept` is left at its end.

    By chunk and head: w: [CHUNK, BLOCK_K]; u: [VALUES, CHUNK]; rest: [CHUNK]; 0 where there is no row or column.
    """
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    head, number = tl.program_id(0), tl.program_id(1)
    _, first, end = chunk_of(starts_ptr, num_seqs, number, CHUNK)
    if first >= end:
        return
    tile = head.to(tl.int64) * tl.num_programs(1) + number
    rows, i = tl.arange(0, CHUNK), tl.arange(0, BLOCK_K)
    row = (first + rows).to(tl.int64)
    is_row = row < end
    g = tl.load(g_ptr + row * g_stride + head, mask=is_row, other=0.0)
    beta = tl.load(beta_ptr + row * beta_stride + head, mask=is_row, other=0.0)
    k_at = k_ptr + row[:, None] * k_stride + head // heads_a_key * k_head_stride + i[None, :]
    k = tl.load(k_at, mask=is_row[:, None] & (i < key_dim)[None, :], other=0.0)
    total, low, last, last_low = sum_decays(g, True)
    pairs = decays_between(total, low, rows)
    system = tl.where(rows[:, None] > rows[None, :], dot(k, tl.trans(k), IS_EXACT) * pairs, 0.0) * beta[:, None]
    inverse = invert(system, CHUNK, LEAF, IS_EXACT)
    w = dot(inverse * (beta * tl.exp(total))[None, :], k, IS_EXACT)
    tl.store(w_ptr + tile * CHUNK * BLOCK_K + rows[:, None] * BLOCK_K + i[None, :], w.to(w_ptr.dtype.element_ty))
    tl.store(rest_ptr + tile * CHUNK + rows, tl.exp((last - total) + (last_low - low)))
    tl.store(kept_ptr + tile, tl.exp(last))
    weights = inverse * beta[None, :]
    for value in range(0, value_dim, BLOCK_V):
        j = value + tl.arange(0, BLOCK_V)
        v_at = v_ptr + row[:, None] * v_stride + head * v_head_stride + j[None, :]
        v = tl.load(v_at, mask=is_row[:, None] & (j < value_dim)[None, :], other=0.0)
        u = tl.trans(dot(weights, v, IS_EXACT))
        tl.store(u_ptr + (tile * VALUES + j[:, None]) * CHUNK + rows[None, :], u.to(u_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["num_numbers"], do_not_specialize_on_alignment=PLACE_POINTERS)
def _carry_kernel(
    k_ptr, w_ptr, u_ptr, rest_ptr, kept_ptr, before_ptr, states_ptr, starts_ptr, slots_ptr, holds_ptr,
    k_stride, k_head_stride, slot_stride, num_numbers, heads_a_key, key_dim, value_dim,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, VALUES: tl.constexpr, BLOCK_V: tl.constexpr,
    IS_EXACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Writes each chunk's state before it, [VALUES, BLOCK_K], and its new values in the place of u.

    All is transposed: so the left side of both products is what the other one left in registers.
    """
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    head, seq = tl.program_id(0), tl.program_id(1)
    start, end = tl.load(starts_ptr + seq), tl.load(starts_ptr + seq + 1)
    if start == end:
        return
    rows, i, j = tl.arange(0, CHUNK), tl.arange(0, BLOCK_K), tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    is_k = i < key_dim
    slot = tl.load(slots_ptr + seq).to(tl.int64) * slot_stride + head * key_dim * value_dim
    place, is_state = states_ptr + slot + i[None, :] * value_dim + j[:, None], is_k[None, :] & (j < value_dim)[:, None]
    state = tl.load(place, mask=is_state & (tl.load(holds_ptr + seq) != 0), other=0.0)
    tile = head.to(tl.int64) * num_numbers + first_number(starts_ptr, seq, CHUNK)
    k_ptr += start.to(tl.int64) * k_stride + head // heads_a_key * k_head_stride
    w_ptr += tile * CHUNK * BLOCK_K
    u_ptr += tile * VALUES * CHUNK
    before_ptr += tile * VALUES * BLOCK_K
    rest_ptr += tile * CHUNK
    kept_ptr += tile
    kept = tl.load(kept_ptr)
    for first in range(0, end - start, CHUNK):
        kept_ptr += 1
        next_kept = tl.load(kept_ptr, mask=first + CHUNK < end - start, other=0.0)  # a chunk ahead: no copy
        before_at = before_ptr + (first // CHUNK * (VALUES * BLOCK_K) + j[:, None] * BLOCK_K + i[None, :])
        tl.store(before_at, state.to(before_ptr.dtype.element_ty))
        w = tl.load(w_ptr + (first * BLOCK_K + rows[:, None] * BLOCK_K + i[None, :]))
        known = dot(state, tl.trans(w), IS_EXACT)
        u_at = u_ptr + (first * VALUES + j[:, None] * CHUNK + rows[None, :])
        new = tl.load(u_at).to(tl.float32) - known
        rest = tl.load(rest_ptr + (first + rows))
        k_at = k_ptr + (rows[:, None] * k_stride + i[None, :])
        k = tl.load(k_at, mask=(rows < end - start - first)[:, None] & is_k[None, :], other=0.0)
        tl.store(u_at, new.to(u_ptr.dtype.element_ty))
        state = kept * state + dot(new * rest[None, :], k, IS_EXACT)
        kept = next_kept
        k_ptr += CHUNK * k_stride
    tl.store(place, state, mask=is_state)


@triton.jit(do_not_specialize=["num_seqs"], do_not_specialize_on_alignment=PLACE_POINTERS)
def _read_kernel(
    q_ptr, k_ptr, g_ptr, new_ptr, before_ptr, starts_ptr, o_ptr,
    q_stride, q_head_stride, k_stride, k_head_stride, g_stride,
    num_seqs, heads_a_key, key_dim, value_dim, scale,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, VALUES: tl.constexpr, BLOCK_V: tl.constexpr,
    IS_EXACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    head, number, num_heads = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    _, first, end = chunk_of(starts_ptr, num_seqs, number, CHUNK)
    if first >= end:
        return
    tile, key_head = head.to(tl.int64) * tl.num_programs(1) + number, head // heads_a_key
    rows, i, j = tl.arange(0, CHUNK), tl.arange(0, BLOCK_K), tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    row = (first + rows).to(tl.int64)
    is_row = row < end
    is_key = is_row[:, None] & (i < key_dim)[None, :]
    g = tl.load(g_ptr + row * g_stride + head, mask=is_row, other=0.0)
    q = tl.load(q_ptr + row[:, None] * q_stride + key_head * q_head_stride + i[None, :], mask=is_key, other=0.0)
    k = tl.load(k_ptr + row[:, None] * k_stride + key_head * k_head_stride + i[None, :], mask=is_key, other=0.0)
    before = tl.load(before_ptr + (tile * VALUES + j[:, None]) * BLOCK_K + i[None, :])
    new = tl.load(new_ptr + (tile * VALUES + j[:, None]) * CHUNK + rows[None, :])
    total, low, _, _ = sum_decays(g, True)
    pairs = dot(q, tl.trans(k), IS_EXACT) * decays_between(total, low, rows)
    o = tl.exp(total)[:, None] * dot(q, tl.trans(before), IS_EXACT)
    o += dot(pairs, tl.trans(new), IS_EXACT)
    o_at = o_ptr + (row[:, None] * num_heads + head) * value_dim + j[None, :]
    tl.store(o_at, (o * scale).to(o_ptr.dtype.element_ty), mask=is_row[:, None] & (j < value_dim)[None, :])


def default_stages(key_dim: int, value_dim: int) -> Stages:
    return WIDE if min(key_dim, value_dim) > WIDE.chunk // 2 else SMALL


def chunk_gated_delta_rule_in_stages(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    states: Tensor,
    query_start_loc: Tensor,
    state_indices: Tensor,
    has_initial_state: Tensor,
    stages: Stages | None = None,
    is_exact: bool = False,
) -> Tensor:
    """As chunk_gated_delta_rule, of last axes that are dense; head_k_dim at most MOST_KEY_SIZE.

    Scratch: 2 * (BLOCK_K + VALUES) + 4 bytes a row of a chunk and 2 * BLOCK_K * VALUES a chunk, by value head.
    is_exact: products and scratch in float32.
    """
    num_tokens, num_heads, value_dim = v.shape
    num_key_heads, key_dim = k.shape[1:]
    num_seqs, device = len(state_indices), v.device
    stages = stages or default_stages(key_dim, value_dim)
    chunk, block_k = stages.chunk, max(_LEAST, triton.next_power_of_2(key_dim))
    values = max(_LEAST, triton.next_power_of_2(value_dim))
    o = torch.empty(v.shape, dtype=v.dtype, device=device)
    if not v.numel() or not num_seqs:
        return o
    dtype, tiles = torch.float32 if is_exact else torch.bfloat16, (num_heads, num_chunks(num_tokens, num_seqs, chunk))
    w = torch.empty((*tiles, chunk, block_k), dtype=dtype, device=device)
    u = torch.empty((*tiles, values, chunk), dtype=dtype, device=device)
    before = torch.empty((*tiles, values, block_k), dtype=dtype, device=device)
    rest = torch.empty((*tiles, chunk), dtype=torch.float32, device=device)
    kept = torch.empty(tiles, dtype=torch.float32, device=device)
    heads_a_key = num_heads // num_key_heads
    sizes = {"CHUNK": chunk, "BLOCK_K": block_k, "VALUES": values, "IS_EXACT": is_exact, **dependent_launch(device)}
    _solve_kernel[tiles](
        k, v, g, beta, query_start_loc, w, u, rest, kept,
        *k.stride()[:2], *v.stride()[:2], g.stride(0), beta.stride(0), num_seqs, heads_a_key, key_dim, value_dim,
        LEAF=stages.leaf, BLOCK_V=min(stages.solve_values, values), num_warps=stages.solve_warps, num_stages=1, **sizes,
    )  # fmt: skip
    block_v = min(stages.carry_values, values)
    _carry_kernel[num_heads, num_seqs, triton.cdiv(value_dim, block_v)](
        k, w, u, rest, kept, before, states, query_start_loc, state_indices, has_initial_state,
        *k.stride()[:2], states.stride(0), tiles[1], heads_a_key, key_dim, value_dim,
        BLOCK_V=block_v, num_warps=stages.carry_warps, num_stages=stages.carry_stages, **sizes,
    )  # fmt: skip
    block_v = min(stages.read_values, values)
    _read_kernel[(*tiles, triton.cdiv(value_dim, block_v))](
        q, k, g, u, before, query_start_loc, o,
        *q.stride()[:2], *k.stride()[:2], g.stride(0), num_seqs, heads_a_key, key_dim, value_dim, key_dim**-0.5,
        BLOCK_V=block_v, num_warps=stages.read_warps, num_stages=1, **sizes,
    )  # fmt: skip
    return o
