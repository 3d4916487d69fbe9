"""Models that answer in one forward pass: vision, detection, rankers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from fastkernels.engine.runners.batched import BatchedForward
from fastkernels.engine.runners.replay import State


class SinglePassModel(Protocol):
    """prepare: one request's inputs as tensors; forward: of a batch; finish: one request's result for its caller."""

    def prepare(self, inputs: Mapping[str, Any]) -> State: ...

    def forward(self, batch: State) -> State: ...

    def finish(self, result: State) -> Any: ...


class SinglePassRunner:
    """One step a request."""

    def __init__(self, model: SinglePassModel, device: torch.device, uses_graphs: bool = True) -> None:
        self.model = model
        self._forward = BatchedForward(model.forward, device, uses_graphs)

    def start(self, inputs: Mapping[str, Any]) -> tuple[State, int]:
        """A request's tensors, and its number of steps."""
        return self.model.prepare(inputs), 1

    def advance(self, states: Sequence[State], steps: Sequence[int]) -> list[State]:
        return self._forward(states)

    def finish(self, state: State) -> Any:
        return self.model.finish(state)

    @property
    def num_graph_steps(self) -> int:
        return self._forward.num_graph_steps
