"""Causal depthwise convolution over sequences whose last inputs are kept in a slot each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from fastkernels.context import uses_reference
from fastkernels.errors import UnsupportedError
from fastkernels.kernels.causal_conv1d import causal_conv1d, causal_conv1d_update
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec, scalar
from fastkernels.tasks.baseline.state_slots import (
    CONV_STATES,
    HAS_INITIAL_STATE,
    QUERY_START_LOC,
    STATE_INDICES,
    check_tail,
    first_state,
    first_states,
    sequences,
    state_cost,
)

_WEIGHT = TensorSpec(("dim", "width"))
_BIAS = TensorSpec(("dim",)).optional()
_EXAMPLES: tuple[dict[str, Any], ...] = ({}, {"activation": None})
_AXES = {"dim": (40, 67), "width": (4, 2)}


class _CausalConv1d(Op):
    def __init__(self, activation: str | None = "silu") -> None:
        super().__init__()
        if activation not in ("silu", None):
            raise UnsupportedError(f"{type(self).__name__} computes 'silu' or None, not activation {activation!r}.")
        self.activation = activation

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"state_len": sizes["width"] - 1}

    def _check(self, x: Tensor, weight: Tensor, conv_states: Tensor) -> None:
        dim, width = weight.shape
        check_tail(type(self).__name__, "x", x, dim)
        check_tail(type(self).__name__, "conv_states", conv_states, width - 1, dim)
        if conv_states.dtype != x.dtype:
            raise UnsupportedError(f"conv_states are {conv_states.dtype} and x is {x.dtype}; they must be alike.")

    def _activate(self, y: Tensor) -> Tensor:
        return silu(y) if self.activation == "silu" else y

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_flops = 2 * inputs["x"].numel() * inputs["weight"].shape[1]
        return state_cost(inputs, outputs, "conv_states", num_flops)


class CausalConv1d(_CausalConv1d):
    """y[t] = activation(bias + sum_k weight[:, k] * x[t - width + 1 + k]); before a sequence's first row lie its slot's
    rows, or zeros. The slot then holds the last width - 1 inputs.

    Shapes:  x, y: [num_tokens, dim]; weight: [dim, width]; bias: [dim]; conv_states: [num_slots, width - 1, dim];
             query_start_loc: [num_seqs + 1]; state_indices, has_initial_state: [num_seqs]; max_query_len: the longest.
    Dtypes:  x, weight, conv_states alike, bf16, fp16 or fp32; summed in fp32; the states are moved bit for bit.
    Returns: y. conv_states is written to.
    Errors:  ValueError when shapes do not fit; UnsupportedError for another activation, or states of another dtype.
    Source:  Gu & Dao 2023 (https://arxiv.org/abs/2312.00752); as vLLM's causal_conv1d_fn, rows first.
    """

    spec = OpSpec(
        inputs={
            "x": TensorSpec(("num_tokens", "dim")).strided(),
            "weight": _WEIGHT,
            "bias": _BIAS,
            "conv_states": CONV_STATES,
            "query_start_loc": QUERY_START_LOC,
            "state_indices": STATE_INDICES,
            "has_initial_state": HAS_INITIAL_STATE,
            "max_query_len": scalar(Role.MAX_QUERY_LEN),
        },
        outputs={"y": TensorSpec(("num_tokens", "dim"))},
        mutates=("conv_states",),
        examples=_EXAMPLES,
        example_axes=_AXES,
    )

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
        self._check(x, weight, conv_states)
        arguments = (x, weight, bias, conv_states, query_start_loc, state_indices, has_initial_state, max_query_len)
        if uses_reference(x):
            return self.reference(*arguments)
        return causal_conv1d(*arguments, self.activation == "silu")

    def reference(
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
        dtype, width = compute_dtype(x), weight.shape[1]
        y = x.new_zeros(x.shape)
        for start, end, slot, has_state in sequences(query_start_loc, state_indices, has_initial_state):
            padded = torch.cat((first_state(conv_states, slot, has_state, x.dtype), x[start:end]))
            windows = padded.to(dtype).unfold(0, width, 1)
            total = torch.einsum("tdk,dk->td", windows, weight.to(dtype))
            y[start:end] = self._activate(total if bias is None else total + bias).to(x.dtype)
            conv_states[slot] = padded[len(padded) - width + 1 :]
        return y


class CausalConv1dUpdate(_CausalConv1d):
    """CausalConv1d of one new row a sequence.

    Shapes:  x, y: [num_seqs, dim]; conv_states: [num_slots, width - 1, dim]; weight: [dim, width]; bias: [dim];
             state_indices, has_initial_state: [num_seqs].
    Dtypes:  x, weight, conv_states alike, bf16, fp16 or fp32; summed in fp32; the states are moved bit for bit.
    Returns: y. conv_states is written to.
    Errors:  ValueError when shapes do not fit; UnsupportedError for another activation, or states of another dtype.
    Source:  Gu & Dao 2023 (https://arxiv.org/abs/2312.00752); as vLLM's causal_conv1d_update.
    """

    spec = OpSpec(
        inputs={
            "x": TensorSpec(("num_seqs", "dim")).strided(),
            "conv_states": CONV_STATES,
            "weight": _WEIGHT,
            "bias": _BIAS,
            "state_indices": STATE_INDICES,
            "has_initial_state": HAS_INITIAL_STATE,
        },
        outputs={"y": TensorSpec(("num_seqs", "dim"))},
        mutates=("conv_states",),
        examples=_EXAMPLES,
        example_axes=_AXES,
    )

    def forward(
        self,
        x: Tensor,
        conv_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        state_indices: Tensor,
        has_initial_state: Tensor,
    ) -> Tensor:
        self._check(x, weight, conv_states)
        arguments = (x, conv_states, weight, bias, state_indices, has_initial_state)
        if uses_reference(x):
            return self.reference(*arguments)
        return causal_conv1d_update(*arguments, self.activation == "silu")

    def reference(
        self,
        x: Tensor,
        conv_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        state_indices: Tensor,
        has_initial_state: Tensor,
    ) -> Tensor:
        dtype = compute_dtype(x)
        window = torch.cat((first_states(conv_states, state_indices, has_initial_state, x.dtype), x[:, None]), dim=1)
        total = torch.einsum("skd,dk->sd", window.to(dtype), weight.to(dtype))
        conv_states[state_indices.long()] = window[:, 1:]
        return self._activate(total if bias is None else total + bias).to(x.dtype).contiguous()
