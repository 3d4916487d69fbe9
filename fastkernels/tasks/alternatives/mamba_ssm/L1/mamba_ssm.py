"""SelectiveStateUpdate by selective_state_update, in the slots themselves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastkernels.errors import UnsupportedError
from fastkernels.tasks.alternatives.mamba_ssm._library import mamba_function
from fastkernels.tasks.baseline.L1.mamba_ssm import SelectiveStateUpdate as Baseline
from fastkernels.tasks.baseline.state_slots import first_states


class SelectiveStateUpdate(Baseline):
    """Errors: UnsupportedError for a dt_limit, which the library does not have here.

    Source: https://github.com/state-spaces/mamba/blob/v2.3.2/mamba_ssm/ops/triton/selective_state_update.py.
    """

    def __init__(self, dt_limit: Sequence[float] = (0.0, float("inf"))) -> None:
        super().__init__(dt_limit)
        self._update = mamba_function("selective_state_update", "selective_state_update")
        if self.dt_limit != (0.0, float("inf")):
            raise UnsupportedError(f"mamba-ssm's selective_state_update holds steps to no limit, got {self.dt_limit}.")

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
        _, num_heads, head_dim, state_size = ssm_states.shape
        slots, row = state_indices.long(), (num_heads, head_dim)
        ssm_states[slots] = first_states(ssm_states, slots, has_initial_state, ssm_states.dtype)
        rate = -A_log.float().exp()
        return self._update(
            ssm_states,
            x,
            dt[..., None].expand(x.shape),
            rate[:, None, None].expand(*row, state_size),
            B,
            C,
            D=D[:, None].expand(row),
            dt_bias=dt_bias[:, None].expand(row),
            dt_softplus=True,
            state_batch_indices=state_indices.int(),
        )
