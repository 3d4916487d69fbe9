"""Mamba-2's state space, one token a sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.mamba_ssm import selective_state_update
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.mamba_chunk_scan import discretize, heads_of
from fastkernels.tasks.baseline.state_slots import (
    HAS_INITIAL_STATE,
    ROOM,
    STATE_INDICES,
    check_tail,
    coupled,
    decay_parameters,
    first_states,
    float32_state,
    state_cost,
)

_GROUPS = TensorSpec(("num_seqs", "num_groups", "state_size")).strided()


class SelectiveStateUpdate(Op):
    """MambaChunkScan of one new row a sequence: h = exp(step * A) * h + step * x B^T; y = h C + D * x, with
    step = clamp(softplus(dt + dt_bias), dt_limit) and A = -exp(A_log).

    Shapes:  ssm_states: [num_slots, num_heads, head_dim, state_size]; x, y: [num_seqs, num_heads, head_dim];
             dt: [num_seqs, num_heads]; A_log, D, dt_bias: [num_heads]; B, C: [num_seqs, num_groups, state_size];
             state_indices, has_initial_state: [num_seqs].
    Dtypes:  bf16 or fp32, computed in fp32 and rounded once; ssm_states fp32, or another that they are rounded to.
    Returns: y. ssm_states is written to.
    Errors:  ValueError when shapes do not fit.
    Source:  Dao & Gu 2024 (https://arxiv.org/abs/2405.21060); as vLLM's selective_state_update.
    """

    spec = OpSpec(
        inputs={
            "ssm_states": float32_state("num_heads", "head_dim", "state_size"),
            "x": TensorSpec(("num_seqs", "num_heads", "head_dim")).strided(),
            "dt": TensorSpec(("num_seqs", "num_heads")).strided(),
            "A_log": coupled("num_heads"),
            "B": _GROUPS,
            "C": _GROUPS,
            "D": TensorSpec(("num_heads",)),
            "dt_bias": coupled("num_heads"),
            "state_indices": STATE_INDICES,
            "has_initial_state": HAS_INITIAL_STATE,
        },
        outputs={"y": TensorSpec(("num_seqs", "num_heads", "head_dim"))},
        mutates=("ssm_states",),
        examples=({}, {"dt_limit": [0.0, 0.5]}),
        example_axes={"num_groups": (2, 1), "heads_a_group": (2, 3), "head_dim": (16, 5), "state_size": (16, 19)},
        **ROOM,  # type: ignore[arg-type]
    )

    def __init__(self, dt_limit: Sequence[float] = (0.0, float("inf"))) -> None:
        super().__init__()
        self.dt_limit = (float(dt_limit[0]), float(dt_limit[1]))

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_heads": sizes["num_groups"] * sizes["heads_a_group"]}

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        return decay_parameters(sizes["num_heads"], generator)

    def forward(
        self,
        ssm_states: Tensor,
        x: Tensor,
        dt: Tensor,
        A_log: Tensor,  # noqa: N803 - the library's names
        B: Tensor,  # noqa: N803
        C: Tensor,  # noqa: N803
        D: Tensor,  # noqa: N803
        dt_bias: Tensor,
        state_indices: Tensor,
        has_initial_state: Tensor,
    ) -> Tensor:
        check_tail("SelectiveStateUpdate", "ssm_states", ssm_states, *x.shape[1:], B.shape[-1])
        arguments = (ssm_states, x, dt, A_log, B, C, D, dt_bias, state_indices, has_initial_state)
        if uses_reference(x):
            return self.reference(*arguments)
        return selective_state_update(*arguments, self.dt_limit)

    def reference(
        self,
        ssm_states: Tensor,
        x: Tensor,
        dt: Tensor,
        A_log: Tensor,  # noqa: N803
        B: Tensor,  # noqa: N803
        C: Tensor,  # noqa: N803
        D: Tensor,  # noqa: N803
        dt_bias: Tensor,
        state_indices: Tensor,
        has_initial_state: Tensor,
    ) -> Tensor:
        dtype, num_heads = compute_dtype(x), x.shape[1]
        step, decay = discretize(dt, A_log, dt_bias, self.dt_limit, dtype)
        values = x.to(dtype)
        state = first_states(ssm_states, state_indices, has_initial_state, dtype) * decay.exp()[..., None, None]
        state += (step[..., None] * values)[..., None] * heads_of(B, num_heads).to(dtype)[:, :, None]
        y = (state @ heads_of(C, num_heads).to(dtype)[..., None])[..., 0]
        ssm_states[state_indices.long()] = state.to(ssm_states.dtype)
        return (y + D.to(dtype)[:, None] * values).to(x.dtype)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        return state_cost(inputs, outputs, "ssm_states", 5 * inputs["x"].numel() * inputs["B"].shape[-1])
