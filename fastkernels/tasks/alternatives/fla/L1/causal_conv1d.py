"""CausalConv1d and CausalConv1dUpdate by fla's kernels, whose states are [channels, width]."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from fastkernels.tasks.alternatives.fla._library import fla_function, put_back
from fastkernels.tasks.baseline.L1.causal_conv1d import CausalConv1d as Baseline
from fastkernels.tasks.baseline.L1.causal_conv1d import CausalConv1dUpdate as BaselineUpdate
from fastkernels.tasks.baseline.state_slots import first_states


def _widened(conv_states: Tensor, state_indices: Tensor, has_initial_state: Tensor) -> Tensor:
    """[num_seqs, dim, width] of the slots' [width - 1, dim], before the oldest a place that no output reads."""
    held = first_states(conv_states, state_indices, has_initial_state, conv_states.dtype)
    return pad(held.transpose(1, 2), (1, 0)).contiguous()


class CausalConv1d(Baseline):
    """Source: https://github.com/fla-org/flash-linear-attention/blob/v0.5.2/fla/modules/conv/causal_conv1d.py."""

    def __init__(self, activation: str | None = "silu") -> None:
        super().__init__(activation)
        self._convolve = fla_function("modules.convolution", "causal_conv1d")

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        conv_states: Tensor,
        query_start_loc: Tensor,
        state_indices: Tensor,
        has_initial_state: Tensor,
        max_query_len: int,
    ) -> Tensor:
        y, last = self._convolve(
            x[None],
            weight,
            bias,
            initial_state=_widened(conv_states, state_indices, has_initial_state),
            output_final_state=True,
            activation=self.activation,
            cu_seqlens=query_start_loc.long(),
        )
        put_back(conv_states, state_indices, last[:, :, 1:].transpose(1, 2), query_start_loc)
        return y[0]


class CausalConv1dUpdate(BaselineUpdate):
    """Source: https://github.com/fla-org/flash-linear-attention/blob/v0.5.2/fla/modules/conv/triton/ops.py."""

    def __init__(self, activation: str | None = "silu") -> None:
        super().__init__(activation)
        self._update = fla_function("modules.convolution", "causal_conv1d_update")

    def forward(
        self,
        x: Tensor,
        conv_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        state_indices: Tensor,
        has_initial_state: Tensor,
    ) -> Tensor:
        cache = _widened(conv_states, state_indices, has_initial_state)
        y, cache = self._update(x, cache, weight=weight, bias=bias, activation=self.activation)
        conv_states[state_indices.long()] = cache[:, :, 1:].transpose(1, 2)
        return y
