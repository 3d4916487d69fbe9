"""The gated delta rule over prompts: a program a sequence, head and part of its values, chunk after chunk.

For float32 and float16, and for bf16 where prompts are short; others take chunk_gated_delta_rule_stages.py.
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
from fastkernels.kernels.chunk_gated_delta_rule_stages import (
    MOST_KEY_SIZE,
    PLACE_POINTERS,
    WIDE,
    chunk_gated_delta_rule_in_stages,
)

_CHUNK = 32
"""The triangular system of a chunk is solved row by row, in as many steps."""
_LEAST = 16
_EXACT = 16
"""Rows and columns of a tile in float32: products without tensor cores hold whole rows in registers."""


@triton.jit(do_not_specialize_on_alignment=PLACE_POINTERS)
def _chunk_gated_delta_rule_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, beta_ptr, states_ptr, starts_ptr, slots_ptr, holds_ptr, o_ptr,
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride, g_stride, beta_stride, slot_stride,
    num_heads, heads_a_key, key_dim, value_dim, scale,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, IS_EXACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    head, seq = tl.program_id(0), tl.program_id(1)
    key_head = head // heads_a_key
    rows, i, j = tl.arange(0, CHUNK), tl.arange(0, BLOCK_K), tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    is_k, is_v = i < key_dim, j < value_dim
    start, end = tl.load(starts_ptr + seq).to(tl.int64), tl.load(starts_ptr + seq + 1).to(tl.int64)
    if start == end:
        return
    holds = tl.load(holds_ptr + seq) != 0
    at = tl.load(slots_ptr + seq).to(tl.int64) * slot_stride + head * key_dim * value_dim
    place = states_ptr + at + i[:, None] * value_dim + j[None, :]
    is_state = is_k[:, None] & is_v[None, :]
    state = tl.load(place, mask=is_state & holds, other=0.0)
    for first in range(start, end, CHUNK):
        row = first + rows
        is_row = row < end
        g = tl.load(g_ptr + row * g_stride + head, mask=is_row, other=0.0)
        beta = tl.load(beta_ptr + row * beta_stride + head, mask=is_row, other=0.0)
        total, low, last, last_low = sum_decays(g, IS_EXACT)  # in fp64 they would not fit beside bf16 operands
        is_key, is_value = is_row[:, None] & is_k[None, :], is_row[:, None] & is_v[None, :]
        q = tl.load(q_ptr + row[:, None] * q_stride + key_head * q_head_stride + i[None, :], mask=is_key, other=0.0)
        k = tl.load(k_ptr + row[:, None] * k_stride + key_head * k_head_stride + i[None, :], mask=is_key, other=0.0)
        v = tl.load(v_ptr + row[:, None] * v_stride + head * v_head_stride + j[None, :], mask=is_value, other=0.0)
        pairs = decays_between(total, low, rows)
        system = tl.where(rows[:, None] > rows[None, :], dot(k, tl.trans(k), IS_EXACT) * pairs, 0.0) * beta[:, None]
        # inverse = (1 + system)^-1, a row after those above it.
        inverse = tl.where(rows[:, None] == rows[None, :], 1.0, 0.0)
        for step in range(1, CHUNK):
            one = tl.sum(tl.where(rows[:, None] == step, system, 0.0), axis=0)
            solved = -tl.sum(one[:, None] * inverse, axis=0)
            inverse += tl.where(rows[:, None] == step, solved[None, :], 0.0)
        seen = tl.exp(total)[:, None] * dot(k, state, IS_EXACT)
        new = dot(inverse, beta[:, None] * (v.to(tl.float32) - seen), IS_EXACT)
        o = tl.exp(total)[:, None] * dot(q, state, IS_EXACT)
        o += dot(dot(q, tl.trans(k), IS_EXACT) * pairs, new, IS_EXACT)
        o_at = o_ptr + (row[:, None] * num_heads + head) * value_dim + j[None, :]
        tl.store(o_at, (o * scale).to(o_ptr.dtype.element_ty), mask=is_value)
        rest = tl.exp((last - total) + (last_low - low))[:, None] * new
        state = tl.exp(last) * state + dot(tl.trans(k), rest, IS_EXACT)
    tl.store(place, state, mask=is_state)


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    states: Tensor,
    query_start_loc: Tensor,
    state_indices: Tensor,
    has_initial_state: Tensor,
) -> Tensor:
    """ChunkGatedDeltaRule; states is written to. Arguments as the op's, their last axes dense.

    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("chunk_gated_delta_rule", q=q, k=k, v=v, g=g, beta=beta, states=states)
    q, k, v, g, beta = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v, g, beta))
    if in_stages(q, len(state_indices)):
        return chunk_gated_delta_rule_in_stages(
            q, k, v, g, beta, states, query_start_loc, state_indices, has_initial_state
        )
    return chunk_gated_delta_rule_in_turn(q, k, v, g, beta, states, query_start_loc, state_indices, has_initial_state)


def in_stages(q: Tensor, num_seqs: int) -> bool:
    """Whether stages pay: of prompts that have more rows than one chunk on average.

    Shorter ones are all under way at once in one launch, and their last chunks would take most of the scratch.
    """
    num_tokens, _, key_dim = q.shape
    return q.dtype == torch.bfloat16 and key_dim <= MOST_KEY_SIZE and num_tokens > WIDE.chunk * num_seqs


def chunk_gated_delta_rule_in_turn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    states: Tensor,
    query_start_loc: Tensor,
    state_indices: Tensor,
    has_initial_state: Tensor,
) -> Tensor:
    """As chunk_gated_delta_rule, of last axes that are dense: one launch, whatever the dtype."""
    _, num_heads, value_dim = v.shape
    num_key_heads, key_dim = k.shape[1:]
    o = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    is_exact = v.dtype != torch.bfloat16
    block_v = max(_LEAST, min(_EXACT if is_exact else 32, triton.next_power_of_2(value_dim)))
    grid = (num_heads, len(state_indices), triton.cdiv(value_dim, block_v))
    if v.numel() and grid[1]:
        _chunk_gated_delta_rule_kernel[grid](
            q, k, v, g, beta, states, query_start_loc, state_indices, has_initial_state, o,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], g.stride(0), beta.stride(0), states.stride(0),
            num_heads, num_heads // num_key_heads, key_dim, value_dim, key_dim**-0.5,
            CHUNK=_EXACT if is_exact else _CHUNK, BLOCK_K=max(_LEAST, triton.next_power_of_2(key_dim)), BLOCK_V=block_v,
            IS_EXACT=is_exact, num_warps=8 if is_exact else 4, num_stages=2, **dependent_launch(v.device),
        )  # fmt: skip
    return o
