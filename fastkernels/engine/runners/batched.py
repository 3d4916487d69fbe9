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
    The padding repeats a request.

    keeps_inputs: whether a tensor that was part of a graph's last call, and is of this one, need not be copied again:
    nobody writes to what a state holds.
    """

    def __init__(
        self,
        forward: Callable[[State], State],
        device: torch.device,
        uses_graphs: bool,
        most_in_graph: int = BATCH_SIZES[-1],
        keeps_inputs: bool = False,
    ) -> None:
        self._forward, self._device, self._most_in_graph = forward, device, most_in_graph
        self._keeps_inputs = keeps_inputs
        self.graphs = GraphCache(device) if uses_graphs and device.type == "cuda" else None

    @property
    def num_graph_steps(self) -> int:
        return 0 if self.graphs is None else self.graphs.num_replays

    @torch.inference_mode()
    def __call__(self, states: Sequence[State]) -> list[State]:
        """The function of the states, which share their shape key, as one batch."""
        num = len(states)
        parts = {name: [state[name] for state in states] for name in states[0]}
        if self.graphs is not None and num <= self._most_in_graph:
            result = self._replayed(self.graphs, parts, BATCH_SIZES[bisect_left(BATCH_SIZES, num)])
        else:
            result = self._forward({name: self._joined(tensors) for name, tensors in parts.items()})
        return [{name: t[i] for name, t in result.items()} for i in range(num)]

    def _replayed(self, graphs: GraphCache, parts: Mapping[str, Sequence[Tensor]], size: int) -> State:
        key = tuple(sorted((name, (size, *t.shape), t.dtype) for name, (t, *_) in parts.items()))
        sources = parts if self._keeps_inputs else None
        names = parts if sources is None else graphs.stale(key, sources)
        batch = {name: _padded(self._joined(parts[name]), size) for name in names}
        return graphs(key, self._forward, batch, sources)

    def _joined(self, tensors: Sequence[Tensor]) -> Tensor:
        batch = torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0][None]
        return batch.to(self._device, non_blocking=True)


def _padded(tensor: Tensor, num: int) -> Tensor:
    if len(tensor) == num:
        return tensor
    return torch.cat((tensor, tensor[:1].expand(num - len(tensor), *tensor.shape[1:])))
