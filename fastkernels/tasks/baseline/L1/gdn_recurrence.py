"""The gated delta rule, one token a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.gdn_recurrence import gdn_recurrence
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.chunk_gated_delta_rule import (
    EXAMPLE_AXES,
    delta_inputs,
    delta_step,
    draw_delta_inputs,
    value_heads,
)
from fastkernels.tasks.baseline.state_slots import (
    HAS_INITIAL_STATE,
    STATE_INDICES,
    check_tail,
    first_states,
    float32_state,
    state_cost,
)


class GDNRecurrence(Op):
    """ChunkGatedDeltaRule of one new row a sequence: S = exp(g) * S; S += beta * k (v - S^T k)^T; o = S^T q * scale.

    Shapes:  q, k: [num_seqs, num_k_heads, head_k_dim], of length 1; v, o: [num_seqs, num_v_heads, head_v_dim];
             g, beta: [num_seqs, num_v_heads]; states: [num_slots, num_v_heads, head_k_dim, head_v_dim];
             state_indices, has_initial_state: [num_seqs]; scale: head_k_dim ** -0.5.
    Dtypes:  bf16, fp16 or fp32, computed in fp32 and rounded once; g, beta and states fp32.
    Returns: o. states is written to.
    Errors:  ValueError when shapes do not fit.
    Source:  Yang et al. 2024 (https://arxiv.org/abs/2412.06464); arguments as fla's fused_recurrent_gated_delta_rule.
    """

    spec = OpSpec(
        inputs={
            **delta_inputs("num_seqs"),
            "states": float32_state("num_v_heads", "head_k_dim", "head_v_dim"),
            "state_indices": STATE_INDICES,
            "has_initial_state": HAS_INITIAL_STATE,
        },
        outputs={"o": TensorSpec(("num_seqs", "num_v_heads", "head_v_dim"))},
        mutates=("states",),
        example_axes=EXAMPLE_AXES,
    )

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_v_heads": sizes["num_k_heads"] * sizes["heads_a_key"]}

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        return draw_delta_inputs(sizes, sizes["num_seqs"], generator)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        states: Tensor,
        state_indices: Tensor,
        has_initial_state: Tensor,
    ) -> Tensor:
        check_tail("GDNRecurrence", "states", states, v.shape[1], k.shape[2], v.shape[2])
        arguments = (q, k, v, g, beta, states, state_indices, has_initial_state)
        return self.reference(*arguments) if uses_reference(v) else gdn_recurrence(*arguments)

    def reference(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        states: Tensor,
        state_indices: Tensor,
        has_initial_state: Tensor,
    ) -> Tensor:
        dtype = compute_dtype(v)
        queries, keys = (value_heads(x, v.shape[1]).to(dtype) for x in (q, k))
        state = first_states(states, state_indices, has_initial_state, dtype)
        state, o = delta_step(state, queries, keys, v.to(dtype), g.to(dtype), beta.to(dtype))
        states[state_indices.long()] = state.to(states.dtype)
        return o.to(v.dtype)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        return state_cost(inputs, outputs, "states", 7 * inputs["v"].numel() * inputs["k"].shape[-1])
