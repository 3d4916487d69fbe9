"""GDNRecurrence by fla's fused_recurrent_gated_delta_rule, each sequence a batch of one row."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkernels.tasks.alternatives.fla._library import fla_function
from fastkernels.tasks.baseline.L1.gdn_recurrence import GDNRecurrence as Baseline
from fastkernels.tasks.baseline.state_slots import first_states


class GDNRecurrence(Baseline):
    """Source: https://github.com/fla-org/flash-linear-attention/blob/v0.5.2/fla/ops/gated_delta_rule/fused_recurrent.py."""

    def __init__(self) -> None:
        super().__init__()
        self._rule = fla_function("ops.gated_delta_rule", "fused_recurrent_gated_delta_rule")

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
        o, last = self._rule(
            *(x[:, None] for x in (q, k, v)),
            g=g[:, None],
            beta=beta[:, None],
            initial_state=first_states(states, state_indices, has_initial_state, torch.float32),
            output_final_state=True,
        )
        states[state_indices.long()] = last.to(states.dtype)
        return o[:, 0]
