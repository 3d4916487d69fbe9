"""The gated delta rule over prompts, in chunks that are matrix products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastkernels.context import is_reference_asked
from fastkernels.kernels.chunk_gated_delta_rule import chunk_gated_delta_rule
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec, scalar
from fastkernels.tasks.baseline.L1.mamba_chunk_scan import segment_sums
from fastkernels.tasks.baseline.state_slots import (
    HAS_INITIAL_STATE,
    QUERY_START_LOC,
    STATE_INDICES,
    check_tail,
    first_state,
    float32_state,
    sequences,
    state_cost,
)

_CPU_CHUNK = 64
EXAMPLE_AXES = {"num_k_heads": (2, 1), "heads_a_key": (2, 3), "head_k_dim": (16, 24), "head_v_dim": (16, 19)}


def delta_inputs(rows: str) -> dict[str, TensorSpec]:
    """q, k, v, g and beta of so many rows."""
    keys = TensorSpec((rows, "num_k_heads", "head_k_dim"), role=Role.COUPLED).strided()
    gates = TensorSpec((rows, "num_v_heads"), dtype="float32", role=Role.COUPLED)
    values = TensorSpec((rows, "num_v_heads", "head_v_dim")).strided()
    return {"q": keys, "k": keys, "v": values, "g": gates, "beta": gates}


def draw_delta_inputs(sizes: Mapping[str, int], num_rows: int, generator: torch.Generator) -> dict[str, Any]:
    """Queries and keys of length 1, decays that last some tens of rows, steps below 1: else the state grows."""
    keys = (2, num_rows, sizes["num_k_heads"], sizes["head_k_dim"])
    q, k = normalize(torch.randn(keys, generator=generator), dim=-1)
    g, b = torch.rand(2, num_rows, sizes["num_v_heads"], generator=generator)
    return {"q": q, "k": k, "g": -0.2 * g * g, "beta": 0.05 + 0.95 * b}


class ChunkGatedDeltaRule(Op):
    """S[t] = exp(g[t]) * S[t - 1] + beta[t] * k[t] (v[t] - exp(g[t]) * S[t - 1]^T k[t])^T; o[t] = S[t]^T q[t] * scale,
    head by head; a sequence's S begins as its slot, or as zeros, and its slot ends as S.

    Shapes:  q, k: [num_tokens, num_k_heads, head_k_dim], of length 1; v, o: [num_tokens, num_v_heads, head_v_dim], a
             key head for num_v_heads / num_k_heads value heads that follow each other; g, beta: [num_tokens,
             num_v_heads]; states: [num_slots, num_v_heads, head_k_dim, head_v_dim]; query_start_loc: [num_seqs + 1];
             state_indices, has_initial_state: [num_seqs]; max_query_len: the longest; scale: head_k_dim ** -0.5.
    Dtypes:  bf16, fp16 or fp32, computed in fp32 and rounded once; g, beta and states fp32.
    Returns: o. states is written to.
    Errors:  ValueError when shapes do not fit.
    Source:  Yang et al. 2024 (https://arxiv.org/abs/2412.06464); arguments as fla's chunk_gated_delta_rule.
    """

    spec = OpSpec(
        inputs={
            **delta_inputs("num_tokens"),
            "states": float32_state("num_v_heads", "head_k_dim", "head_v_dim"),
            "query_start_loc": QUERY_START_LOC,
            "state_indices": STATE_INDICES,
            "has_initial_state": HAS_INITIAL_STATE,
            "max_query_len": scalar(Role.MAX_QUERY_LEN),
        },
        outputs={"o": TensorSpec(("num_tokens", "num_v_heads", "head_v_dim"))},
        mutates=("states",),
        example_axes=EXAMPLE_AXES,
    )

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_v_heads": sizes["num_k_heads"] * sizes["heads_a_key"]}

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        return draw_delta_inputs(sizes, sizes["num_tokens"], generator)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        states: Tensor,
        query_start_loc: Tensor,
        state_indices: Tensor,
        has_initial_state: Tensor,
        max_query_len: int,
    ) -> Tensor:
        check_tail("ChunkGatedDeltaRule", "states", states, v.shape[1], k.shape[2], v.shape[2])
        places = (query_start_loc, state_indices, has_initial_state)
        if is_reference_asked():
            return self.reference(q, k, v, g, beta, states, *places, max_query_len)
        if v.is_cuda:
            return chunk_gated_delta_rule(q, k, v, g, beta, states, *places)
        o = v.new_zeros(v.shape)
        for start, end, slot, has_state in sequences(*places):
            state = first_state(states, slot, has_state, compute_dtype(v))
            rows = slice(start, end)
            o[rows] = chunked_delta_rule(q[rows], k[rows], v[rows], g[rows], beta[rows], state)
            states[slot] = state
        return o

    def reference(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        states: Tensor,
        query_start_loc: Tensor,
        state_indices: Tensor,
        has_initial_state: Tensor,
        max_query_len: int,
    ) -> Tensor:
        dtype = compute_dtype(v)
        queries, keys = (value_heads(x, v.shape[1]).to(dtype) for x in (q, k))
        o = torch.zeros_like(v, dtype=dtype)
        for start, end, slot, has_state in sequences(query_start_loc, state_indices, has_initial_state):
            state = first_state(states, slot, has_state, dtype)
            for t in range(start, end):
                state, o[t] = delta_step(state, queries[t], keys[t], v[t].to(dtype), g[t].to(dtype), beta[t].to(dtype))
            states[slot] = state.to(states.dtype)
        return o.to(v.dtype)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """The recurrence's own products: a chunk's matrices cost more, and are not counted."""
        return state_cost(inputs, outputs, "states", 7 * inputs["v"].numel() * inputs["k"].shape[-1])


def value_heads(x: Tensor, num_v_heads: int) -> Tensor:
    """[rows, num_v_heads, head_k_dim] of [rows, num_k_heads, head_k_dim]."""
    return x.repeat_interleave(num_v_heads // x.shape[-2], dim=-2)


def delta_step(
    state: Tensor, query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """(the state after one row, its output); any leading axes, then heads."""
    state = g.exp()[..., None, None] * state
    error = value - (state * key[..., None]).sum(-2)
    state = state + key[..., None] * (beta[..., None] * error)[..., None, :]
    return state, (state * query[..., None]).sum(-2) * key.shape[-1] ** -0.5


def chunked_delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """The rows of one sequence, chunk after chunk; `state` is written to. Shapes as ChunkGatedDeltaRule's.

    Within a chunk the errors that the rows correct solve a triangular system (the WY form of Yang et al. 2024).
    """
    dtype, num_heads, scale = state.dtype, v.shape[1], k.shape[-1] ** -0.5
    q, k = (value_heads(x, num_heads).to(dtype).transpose(0, 1) for x in (q, k))
    v, g, beta = (x.to(dtype).transpose(0, 1) for x in (v, g, beta))
    o = torch.empty_like(v)
    for first in range(0, v.shape[1], _CPU_CHUNK):
        rows = slice(first, first + _CPU_CHUNK)
        keys, step = k[:, rows], beta[:, rows, None]
        total, pairs = g[:, rows].cumsum(-1).exp()[..., None], segment_sums(g[:, rows]).exp()
        system = (step * keys) @ keys.transpose(1, 2) * pairs
        right = torch.cat((step * v[:, rows], step * total * keys), dim=-1)
        solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
        new, seen = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
        new = new - seen @ state
        o[:, rows] = (q[:, rows] * total) @ state + (q[:, rows] @ keys.transpose(1, 2) * pairs) @ new
        state.mul_(total[:, -1:]).add_((keys * pairs[:, -1, :, None]).transpose(1, 2) @ new)
    return (o * scale).transpose(0, 1).to(v.dtype)
