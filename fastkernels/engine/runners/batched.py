"""Batches of equal shapes, padded to a few sizes so that each can be a CUDA graph."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fastkernels.engine.runners.replay import GraphCache, State

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


def shape_key(state: Mapping[str, Tensor]) -> tuple[tuple[str, tuple[int, ...], torch.dtype], ...]:
    """What two requests must share to be in one batch."""
    return tuple(sorted((name, tuple(t.shape), t.dtype) for name, t in state.items()))


class BatchedForward:
    """Runs a function of a batch; on a GPU by CUDA graphs of up to most_in_graph requests, by shapes and padded size.
    The padding repeats a request."""

    def __init__(
        self,
        forward: Callable[[State], State],
        device: torch.device,
        uses_graphs: bool,
        most_in_graph: int = BATCH_SIZES[-1],
    ) -> None:
        self._forward, self._device, self._most_in_graph = forward, device, most_in_graph
        self.graphs = GraphCache(device) if uses_graphs and device.type == "cuda" else None

    @property
    def num_graph_steps(self) -> int:
        return 0 if self.graphs is None else self.graphs.num_replays

    @torch.inference_mode()
    def __call__(self, states: Sequence[State]) -> list[State]:
        """The function of the states, which share their shape key, as one batch."""
        num = len(states)
        batch = {name: t[None] for name, t in states[0].items()}
        if num > 1:
            batch = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        batch = {name: t.to(self._device, non_blocking=True) for name, t in batch.items()}
        if self.graphs is not None and num <= self._most_in_graph:
            size = BATCH_SIZES[bisect_left(BATCH_SIZES, num)]
            batch = {name: _padded(t, size) for name, t in batch.items()}
            result = self.graphs(shape_key(batch), self._forward, batch)
        else:
            result = self._forward(batch)
        return [{name: t[i] for name, t in result.items()} for i in range(num)]


def _padded(tensor: Tensor, num: int) -> Tensor:
    if len(tensor) == num:
        return tensor
    return torch.cat((tensor, tensor[:1].expand(num - len(tensor), *tensor.shape[1:])))
