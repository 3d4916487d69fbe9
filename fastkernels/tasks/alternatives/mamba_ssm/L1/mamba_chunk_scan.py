"""MambaChunkScan by mamba_chunk_scan_combined, a sequence a call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastkernels.tasks.alternatives.mamba_ssm._library import mamba_function
from fastkernels.tasks.baseline.L1.mamba_chunk_scan import MambaChunkScan as Baseline
from fastkernels.tasks.baseline.state_slots import first_state, sequences


class MambaChunkScan(Baseline):
    """Source: https://github.com/state-spaces/mamba/blob/v2.3.2/mamba_ssm/ops/triton/ssd_combined.py."""

    def __init__(self, chunk_size: int = 256, dt_limit: Sequence[float] = (0.0, float("inf"))) -> None:
        super().__init__(chunk_size, dt_limit)
        self._scan = mamba_function("ssd_combined", "mamba_chunk_scan_combined")

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
        y = torch.zeros_like(x, memory_format=torch.contiguous_format)
        rate = -A_log.float().exp()
        for start, end, slot, has_state in sequences(query_start_loc, state_indices, has_initial_state):
            own = slice(start, end)
            out, last = self._scan(
                x[None, own],
                dt[None, own],
                rate,
                B[None, own],
                C[None, own],
                self.chunk_size,
                D=D,
                dt_bias=dt_bias,
                initial_states=first_state(ssm_states, slot, has_state, torch.float32)[None],
                dt_softplus=True,
                dt_limit=self.dt_limit,
                return_final_states=True,
            )
            y[own] = out[0]
            ssm_states[slot] = last[0]
        return y
