"""Models that refine a state over a fixed number of steps: diffusion, flow matching."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fastkernels.engine.runners.batched import BatchedForward
from fastkernels.engine.runners.replay import State
from fastkernels.errors import UnsupportedError

STEP = "step"
"""The batch's tensor [n] int64 that says which step each request is at: requests at unlike steps share a batch."""


_MOST_ENCODED_BY_GRAPH = 8
"""Requests: what many take is no more for the host to launch, and a graph holds all the memory between."""


class IterativeModel(Protocol):
    """prepare: one request's first state; num_steps: how often it is advanced; advance: a batch's next states.

    advance gives back the tensors that change, of the same shapes; the others stay as they are and nobody writes to
    them: a graph that holds them from the step before does not copy them again. A model may have `encode`, what is
    computed once of a batch before its first step: it gets the tensors that `encoded` names, and what it gives back
    takes their place.
    """

    def prepare(self, inputs: Mapping[str, Any]) -> State: ...

    def num_steps(self, inputs: Mapping[str, Any]) -> int: ...

    def advance(self, batch: State, step: Tensor) -> State: ...

    def finish(self, state: State) -> Any: ...


class IterativeRunner:
    """Some steps a request, each in a batch with whoever else is under way."""

    def __init__(self, model: IterativeModel, device: torch.device, uses_graphs: bool = True) -> None:
        self.model = model

        def advance(batch: State) -> State:
            return model.advance({name: t for name, t in batch.items() if name != STEP}, batch[STEP])

        self._advance = BatchedForward(advance, device, uses_graphs, keeps_inputs=True)
        self._encode: BatchedForward | None = None
        if hasattr(model, "encode"):
            self._encode = BatchedForward(model.encode, device, uses_graphs, _MOST_ENCODED_BY_GRAPH)

    def start(self, inputs: Mapping[str, Any]) -> tuple[State, int]:
        """A request's first state, and its number of steps. Errors: UnsupportedError for less than one step."""
        num_steps = self.model.num_steps(inputs)
        if num_steps < 1:
            raise UnsupportedError(f"A request asks for {num_steps} steps; at least 1 is needed.")
        return self.model.prepare(inputs), num_steps

    def advance(self, states: Sequence[State], steps: Sequence[int]) -> list[State]:
        """The states after one more step; steps: how many each has behind it, of models that encode all or none 0."""
        if self._encode is not None and not steps[0]:
            states = self._encoded(self._encode, states)
        placed = [{**state, STEP: torch.tensor(step)} for state, step in zip(states, steps, strict=True)]
        for state in placed:
            state[STEP] = state[STEP].to(next(iter(state.values())).device)
        return [{**state, **new} for state, new in zip(states, self._advance(placed), strict=True)]

    def _encoded(self, encode: BatchedForward, states: Sequence[State]) -> list[State]:
        names: Collection[str] = self.model.encoded  # type: ignore[attr-defined]
        given = [{name: state[name] for name in names} for state in states]
        kept = [{name: t for name, t in state.items() if name not in names} for state in states]
        return [{**state, **new} for state, new in zip(kept, encode(given), strict=True)]

    def finish(self, state: State) -> Any:
        return self.model.finish(state)

    @property
    def num_graph_steps(self) -> int:
        encoded = 0 if self._encode is None else self._encode.num_graph_steps
        return self._advance.num_graph_steps + encoded
