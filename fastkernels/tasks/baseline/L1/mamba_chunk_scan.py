"""Mamba-2's state space over prompts, in chunks that are matrix products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fastkernels.context import is_reference_asked
from fastkernels.kernels.mamba_chunk_scan import mamba_chunk_scan
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec, scalar
from fastkernels.tasks.baseline.state_slots import (
    HAS_INITIAL_STATE,
    QUERY_START_LOC,
    ROOM,
    STATE_INDICES,
    check_tail,
    coupled,
    decay_parameters,
    first_state,
    float32_state,
    sequences,
    state_cost,
)

_CPU_CHUNK = 64
_GROUPS = TensorSpec(("num_tokens", "num_groups", "state_size")).strided()


def discretize(
    dt: Tensor, a_log: Tensor, dt_bias: Tensor, limit: tuple[float, float], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(step sizes, logarithms of the decays) of every row and head."""
    step = softplus(dt.to(dtype) + dt_bias.to(dtype)).clamp(*limit)
    return step, -a_log.to(dtype).exp() * step


class MambaChunkScan(Op):
    """h[t] = exp(step[t] * A) * h[t - 1] + step[t] * x[t] B[t]^T; y[t] = h[t] C[t] + D * x[t], head by head, with
    step = clamp(softplus(dt + dt_bias), dt_limit) and A = -exp(A_log); a sequence's h begins as its slot, or as zeros,
    and its slot ends as h.

    Shapes:  x, y: [num_tokens, num_heads, head_dim]; dt: [num_tokens, num_heads]; A_log, D, dt_bias: [num_heads];
             B, C: [num_tokens, num_groups, state_size], a group for num_heads / num_groups heads that follow each
             other; ssm_states: [num_slots, num_heads, head_dim, state_size]; query_start_loc: [num_seqs + 1];
             state_indices, has_initial_state: [num_seqs]; max_query_len: the longest.
    Dtypes:  bf16 or fp32, computed in fp32 and rounded once; ssm_states fp32, or another that they are rounded to.
    Returns: y. ssm_states is written to.
    Errors:  ValueError when shapes do not fit.
    Source:  Dao & Gu 2024 (https://arxiv.org/abs/2405.21060); as vLLM's mamba_chunk_scan_combined_varlen.
    """

    spec = OpSpec(
        inputs={
            "x": TensorSpec(("num_tokens", "num_heads", "head_dim")).strided(),
            "dt": TensorSpec(("num_tokens", "num_heads")).strided(),
            "A_log": coupled("num_heads"),
            "B": _GROUPS,
            "C": _GROUPS,
            "D": TensorSpec(("num_heads",)),
            "dt_bias": coupled("num_heads"),
            "ssm_states": float32_state("num_heads", "head_dim", "state_size"),
            "query_start_loc": QUERY_START_LOC,
            "state_indices": STATE_INDICES,
            "has_initial_state": HAS_INITIAL_STATE,
            "max_query_len": scalar(Role.MAX_QUERY_LEN),
        },
        outputs={"y": TensorSpec(("num_tokens", "num_heads", "head_dim"))},
        mutates=("ssm_states",),
        examples=({"chunk_size": 16}, {"chunk_size": 64, "dt_limit": [0.0, 0.5]}),
        example_axes={"num_groups": (2, 1), "heads_a_group": (2, 3), "head_dim": (16, 5), "state_size": (16, 19)},
        **ROOM,  # type: ignore[arg-type]
    )

    def __init__(self, chunk_size: int = 256, dt_limit: Sequence[float] = (0.0, float("inf"))) -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.dt_limit = (float(dt_limit[0]), float(dt_limit[1]))

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_heads": sizes["num_groups"] * sizes["heads_a_group"]}

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        return decay_parameters(sizes["num_heads"], generator)

    def forward(
        self,
        x: Tensor,
        dt: Tensor,
        A_log: Tensor,  # noqa: N803 - the library's names
        B: Tensor,  # noqa: N803
        C: Tensor,  # noqa: N803
        D: Tensor,  # noqa: N803
        dt_bias: Tensor,
        ssm_states: Tensor,
        query_start_loc: Tensor,
        state_indices: Tensor,
        has_initial_state: Tensor,
        max_query_len: int,
    ) -> Tensor:
        check_tail("MambaChunkScan", "ssm_states", ssm_states, *x.shape[1:], B.shape[-1])
        places = (query_start_loc, state_indices, has_initial_state)
        if is_reference_asked():
            return self.reference(x, dt, A_log, B, C, D, dt_bias, ssm_states, *places, max_query_len)
        if x.is_cuda:
            return mamba_chunk_scan(x, dt, A_log, B, C, D, dt_bias, ssm_states, *places, self.dt_limit)
        step, decay = discretize(dt, A_log, dt_bias, self.dt_limit, compute_dtype(x))
        y = x.new_zeros(x.shape)
        for start, end, slot, has_state in sequences(*places):
            rows = slice(start, end)
            state = first_state(ssm_states, slot, has_state, step.dtype)
            y[rows] = chunked_scan(x[rows], step[rows], decay[rows], B[rows], C[rows], D, state)
            ssm_states[slot] = state
        return y

    def reference(
        self,
        x: Tensor,
        dt: Tensor,
        A_log: Tensor,  # noqa: N803
        B: Tensor,  # noqa: N803
        C: Tensor,  # noqa: N803
        D: Tensor,  # noqa: N803
        dt_bias: Tensor,
        ssm_states: Tensor,
        query_start_loc: Tensor,
        state_indices: Tensor,
        has_initial_state: Tensor,
        max_query_len: int,
    ) -> Tensor:
        dtype = compute_dtype(x)
        step, decay = discretize(dt, A_log, dt_bias, self.dt_limit, dtype)
        values = x.to(dtype)
        inputs = (step[..., None] * values)[..., None] * heads_of(B, x.shape[1]).to(dtype)[:, :, None]
        outputs = heads_of(C, x.shape[1]).to(dtype)
        y = torch.zeros_like(values)
        for start, end, slot, has_state in sequences(query_start_loc, state_indices, has_initial_state):
            state = first_state(ssm_states, slot, has_state, dtype)
            for t in range(start, end):
                state = decay[t].exp()[:, None, None] * state + inputs[t]
                y[t] = (state @ outputs[t][..., None])[..., 0]
            y[start:end] += D.to(dtype)[:, None] * values[start:end]
            ssm_states[slot] = state.to(ssm_states.dtype)
        return y.to(x.dtype)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """The recurrence's own products: a chunk's matrices cost more, and are not counted."""
        return state_cost(inputs, outputs, "ssm_states", 5 * inputs["x"].numel() * inputs["B"].shape[-1])


def heads_of(groups: Tensor, num_heads: int) -> Tensor:
    """[rows, num_heads, state_size] of [rows, num_groups, state_size]."""
    return groups.repeat_interleave(num_heads // groups.shape[-2], dim=-2)


def chunked_scan(x: Tensor, step: Tensor, decay: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor) -> Tensor:
    """The rows of one sequence, chunk after chunk; `state` is written to.

    Shapes:  as MambaChunkScan's; step, decay: [num_rows, num_heads]; state: [num_heads, head_dim, state_size].
    """
    dtype, num_heads = step.dtype, x.shape[1]
    values = (x.to(dtype) * step[..., None]).transpose(0, 1)
    b, c = (heads_of(each, num_heads).to(dtype).transpose(0, 1) for each in (b, c))
    y = torch.empty(values.shape, dtype=dtype, device=x.device)
    for first in range(0, x.shape[0], _CPU_CHUNK):
        rows = slice(first, first + _CPU_CHUNK)
        total = decay[rows].T.cumsum(-1)  # [num_heads, rows]
        pairs = segment_sums(decay[rows].T).exp()
        y[:, rows] = ((c[:, rows] @ b[:, rows].transpose(1, 2)) * pairs) @ values[:, rows]
        y[:, rows] += (c[:, rows] @ state.transpose(1, 2)) * total.exp()[..., None]
        rest = pairs[:, -1, :, None]
        state.mul_(total[:, -1].exp()[:, None, None]).add_((values[:, rows] * rest).transpose(1, 2) @ b[:, rows])
    return (y.transpose(0, 1) + d.to(dtype)[:, None] * x.to(dtype)).to(x.dtype)


def segment_sums(x: Tensor) -> Tensor:
    """out[..., i, j] = x[..., j + 1] + ... + x[..., i], -inf where j > i: no difference of large sums is taken."""
    size = x.shape[-1]
    below = torch.ones(size, size, dtype=torch.bool, device=x.device).tril(-1)
    sums = torch.where(below, x[..., :, None], 0).cumsum(-2)
    return sums.masked_fill(~below.logical_or(torch.eye(size, dtype=torch.bool, device=x.device)), float("-inf"))
