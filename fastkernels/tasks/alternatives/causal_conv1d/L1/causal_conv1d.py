"""CausalConv1d by causal_conv1d_fn, a sequence a call, and CausalConv1dUpdate by causal_conv1d_update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastkernels.errors import UnsupportedError
from fastkernels.tasks.alternatives.library import library_function
from fastkernels.tasks.baseline.L1.causal_conv1d import CausalConv1d as Baseline
from fastkernels.tasks.baseline.L1.causal_conv1d import CausalConv1dUpdate as BaselineUpdate
from fastkernels.tasks.baseline.state_slots import first_states, sequences

_WIDTHS = (2, 3, 4)
_STEP = 8


def _function(name: str) -> Any:
    return library_function("causal_conv1d", "causal-conv1d>=1.6", "causal_conv1d", name)


def _check(weight: Tensor) -> None:
    if weight.shape[1] not in _WIDTHS:
        raise UnsupportedError(f"causal-conv1d has kernels of widths 2 to 4, got {weight.shape[1]}.")


class CausalConv1d(Baseline):
    """Errors: UnsupportedError for a width other than 2 to 4, or channels or rows of x that are no multiples of 8.

    Source: https://github.com/Dao-AILab/causal-conv1d/blob/v1.6.1.post4/causal_conv1d/causal_conv1d_interface.py.
    """

    def __init__(self, activation: str | None = "silu") -> None:
        super().__init__(activation)
        self._convolve = _function("causal_conv1d_fn")

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
        _check(weight)
        if x.shape[1] % _STEP or x.stride(0) % _STEP:
            raise UnsupportedError(
                f"causal-conv1d takes channels that lie side by side in multiples of {_STEP}, got {x.shape[1]} of rows "
                f"{x.stride(0)} apart."
            )
        y = torch.zeros_like(x, memory_format=torch.contiguous_format)
        held = first_states(conv_states, state_indices, has_initial_state, x.dtype)
        places = sequences(query_start_loc, torch.arange(len(held)), has_initial_state)
        for start, end, number, _ in places:
            out, last = self._convolve(
                x[None, start:end].transpose(1, 2),
                weight,
                bias,
                initial_states=held[number : number + 1].transpose(1, 2),
                return_final_states=True,
                activation=self.activation,
            )
            y[start:end] = out[0].T
            conv_states[state_indices[number].long()] = last[0].T
        return y


class CausalConv1dUpdate(BaselineUpdate):
    """Errors: UnsupportedError for a width other than 2 to 4.

    Source: https://github.com/Dao-AILab/causal-conv1d/blob/v1.6.1.post4/causal_conv1d/causal_conv1d_interface.py.
    """

    def __init__(self, activation: str | None = "silu") -> None:
        super().__init__(activation)
        self._update = _function("causal_conv1d_update")

    def forward(
        self,
        x: Tensor,
        conv_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        state_indices: Tensor,
        has_initial_state: Tensor,
    ) -> Tensor:
        _check(weight)
        slots = state_indices.long()
        conv_states[slots] = first_states(conv_states, slots, has_initial_state, conv_states.dtype)
        in_place = conv_states.transpose(1, 2)
        indices = state_indices.int()
        return self._update(x, in_place, weight, bias, self.activation, conv_state_indices=indices)
