"""Batches of equal shapes, padded to a few sizes so that each can be a CUDA graph."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fastkernels.engine.runners.replay import Captured, State, capture

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


def shape_key(state: Mapping[str, Tensor]) -> tuple[tuple[str, tuple[int, ...], torch.dtype], ...]:
    """What two requests must share to be in one batch."""
    return tuple(sorted((name, tuple(t.shape), t.dtype) for name, t in state.items()))


class BatchedForward:
    """Runs a function of a batch; on a GPU by one CUDA graph for each shape and padded size."""

    def __init__(self, forward: Callable[[State], State], device: torch.device, uses_graphs: bool) -> None:
        self._forward, self._device = forward, device
        self._uses_graphs = uses_graphs and device.type == "cuda"
        self._graphs: dict[object, Captured] = {}
        self.num_graph_steps = 0

    @torch.inference_mode()
    def __call__(self, states: Sequence[State]) -> list[State]:
        """The function of the states, which share their shape key, as one batch."""
        num = len(states)
        batch = {name: t[None] for name, t in states[0].items()}
        if num > 1:
            batch = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        batch = {name: t.to(self._device, non_blocking=True) for name, t in batch.items()}
        if self._uses_graphs and num <= BATCH_SIZES[-1]:
            result = self._replay(batch, num, shape_key(states[0]))
        else:
            result = self._forward(batch)
        return [{name: t[i] for name, t in result.items()} for i in range(num)]

    def _replay(self, batch: State, num: int, key: object) -> State:
        size = BATCH_SIZES[bisect_left(BATCH_SIZES, num)]
        if (key, size) not in self._graphs:
            inputs = {name: t[:1].expand(size, *t.shape[1:]).clone() for name, t in batch.items()}
            self._graphs[key, size] = capture(self._forward, inputs, self._device)
        captured = self._graphs[key, size]
        for name, t in batch.items():
            captured.inputs[name][:num].copy_(t)
        captured.graph.replay()
        self.num_graph_steps += 1
        return {name: t[:num].clone() for name, t in captured.outputs.items()}
