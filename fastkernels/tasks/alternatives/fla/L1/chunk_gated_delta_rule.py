"""ChunkGatedDeltaRule by fla's kernel of the same name, sequences packed into one batch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkernels.errors import UnsupportedError
from fastkernels.tasks.alternatives.fla._library import fla_function, put_back
from fastkernels.tasks.baseline.L1.chunk_gated_delta_rule import ChunkGatedDeltaRule as Baseline
from fastkernels.tasks.baseline.state_slots import first_states

_MOST_KEY_SIZE = 256


class ChunkGatedDeltaRule(Baseline):
    """Errors: UnsupportedError when head_k_dim is over 256.

    Source: https://github.com/fla-org/flash-linear-attention/blob/v0.5.2/fla/ops/gated_delta_rule/chunk.py.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rule = fla_function("ops.gated_delta_rule", "chunk_gated_delta_rule")

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
        if k.shape[-1] > _MOST_KEY_SIZE:
            raise UnsupportedError(
                f"fla's gated delta rule takes head_k_dim up to {_MOST_KEY_SIZE}, got {k.shape[-1]}."
            )
        o, last = self._rule(
            *(x[None] for x in (q, k, v, g, beta)),
            initial_state=first_states(states, state_indices, has_initial_state, torch.float32),
            output_final_state=True,
            cu_seqlens=query_start_loc.long(),
        )
        put_back(states, state_indices, last, query_start_loc)
        return o[0]
