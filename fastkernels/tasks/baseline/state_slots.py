"""What the ops with a state a sequence share: tensor specs, checks, sequences and their slots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastkernels.cache import CacheSpec
from fastkernels.context import ForwardContext, Phase, forward_context_or_none
from fastkernels.errors import UnsupportedError
from fastkernels.spec import Compare, Cost, Role, TensorSpec

QUERY_START_LOC = TensorSpec(("num_query_starts",), dtype="int32", role=Role.QUERY_START)
STATE_INDICES = TensorSpec(("num_seqs",), dtype="int32", role=Role.STATE_SLOT)
HAS_INITIAL_STATE = TensorSpec(("num_seqs",), dtype="bool", role=Role.HAS_STATE)
CONV_STATES = TensorSpec(("num_slots", "state_len", "dim"), role=Role.STATE, compare=Compare.EXACT)

ROOM = {"dtypes": ("bfloat16", "float32")}
"""Of ops that multiply several activations: in fp16 their products leave its range."""


def coupled(*axes: str) -> TensorSpec:
    """A parameter of a recurrence: of a range of its own, so that the state neither vanishes nor grows."""
    return TensorSpec(axes, role=Role.COUPLED)


def float32_state(*axes: str) -> TensorSpec:
    return replace(TensorSpec(("num_slots", *axes), role=Role.STATE), dtype="float32")


def decay_parameters(num_heads: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A_log and dt_bias as models are initialised with them: exp(A_log) in [1, 16], softplus(dt_bias) in [0.001, 0.1].

    Source: Dao & Gu 2024 (https://arxiv.org/abs/2405.21060).
    """
    rate, step = torch.rand(2, num_heads, generator=generator)
    step = torch.exp(step * 4.6 - 6.9)
    return {"A_log": torch.log(1 + 15 * rate), "dt_bias": step + torch.log(-torch.expm1(-step))}


def sequences(
    query_start_loc: Tensor, state_indices: Tensor, has_initial_state: Tensor
) -> Iterator[tuple[int, int, int, bool]]:
    """(first row, row after the last, slot, whether the slot holds anything) of every sequence that has rows."""
    slots, holds = state_indices.tolist(), has_initial_state.tolist()
    for (start, end), slot, has_state in zip(pairwise(query_start_loc.tolist()), slots, holds, strict=True):
        if end > start:
            yield start, end, slot, has_state


def first_state(states: Tensor, slot: int, has_state: bool, dtype: torch.dtype) -> Tensor:
    """A copy of what a slot holds, zeros where that is not the sequence's."""
    return states[slot].to(dtype, copy=True) if has_state else torch.zeros_like(states[slot], dtype=dtype)


def first_states(states: Tensor, state_indices: Tensor, has_initial_state: Tensor, dtype: torch.dtype) -> Tensor:
    """`first_state` of every sequence: [num_seqs, ...]."""
    held = states[state_indices.long()].to(dtype)
    return torch.where(has_initial_state.view(-1, *[1] * (held.dim() - 1)), held, 0)


def check_tail(op: str, name: str, x: Tensor, *tail: int) -> None:
    """Errors: ValueError when x does not end in these axes."""
    if tuple(x.shape[x.dim() - len(tail) :]) != tail:
        raise ValueError(f"{op}: {name} must end in {list(tail)}, got {tuple(x.shape)}.")


def state_cost(inputs: dict[str, Any], outputs: dict[str, Tensor], states: str, num_flops: int) -> Cost:
    """Arguments and results once, and of the states the sequences' own, written, and read by those that go on."""
    tensors = [t for n, t in (*inputs.items(), *outputs.items()) if isinstance(t, Tensor) and n != states]
    own = inputs[states][:1]
    num_bytes = sum(t.numel() * t.element_size() for t in tensors)
    num_moved = len(inputs["state_indices"]) + int(inputs["has_initial_state"].sum())
    return Cost(num_bytes + num_moved * own.numel() * own.element_size(), num_flops)


@dataclass(frozen=True)
class Step:
    """A batch as layers with a state take it: single new tokens at the front, prompts behind them.

    decodes: (state_indices, has_initial_state) of the former; prompts: (query_start_loc, state_indices,
    has_initial_state, max_query_len) of the latter, rows counted from the first prompt's.
    """

    num_decodes: int
    has_prompts: bool
    decodes: tuple[Tensor, Tensor]
    prompts: tuple[Tensor, Tensor, Tensor, int]


def step_of(context: ForwardContext) -> Step:
    """Errors: UnsupportedError when the context has no state slots."""
    slots, holds = context.state_slots, context.has_initial_state
    if slots is None or holds is None:
        raise UnsupportedError("A layer keeps a state, and the forward context has no state_slots.")
    num_seqs = len(slots)
    num = num_seqs if context.phase is Phase.DECODE else context.num_decodes
    starts = context.query_start_loc if num == 0 else context.query_start_loc[num:] - num
    return Step(
        num_decodes=num,
        has_prompts=num < num_seqs,
        decodes=(slots[:num], holds[:num]),
        prompts=(starts, slots[num:], holds[num:], context.max_query_len),
    )


def context_cost(spec: CacheSpec) -> int:
    """Bytes of the states of a step's sequences, read and written; 0 outside of a forward context."""
    context = forward_context_or_none()
    if context is None or context.state_slots is None:
        return 0
    return 2 * len(context.state_slots) * sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in spec.state)
