"""Batches of equal shapes, padded to a few sizes so that each can be a CUDA graph."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]
"""Tensors by name, without a batch axis for one request, with it in front for a batch."""

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


def shape_key(state: Mapping[str, Tensor]) -> tuple[tuple[str, tuple[int, ...], torch.dtype], ...]:
    """What two requests must share to be in one batch."""
    return tuple(sorted((name, tuple(t.shape), t.dtype) for name, t in state.items()))


class BatchedForward:
    """Runs a function of a batch; on a GPU by one CUDA graph for each shape and padded size."""

    def __init__(self, forward: Callable[[State], State], device: torch.device, uses_graphs: bool) -> None:
        self._forward, self._device = forward, device
        self._uses_graphs = uses_graphs and device.type == "cuda"
        self._graphs: dict[object, tuple[torch.cuda.CUDAGraph, State, State]] = {}
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
            self._graphs[key, size] = self._capture(batch, size)
        graph, inputs, outputs = self._graphs[key, size]
        for name, t in batch.items():
            inputs[name][:num].copy_(t)
        graph.replay()
        self.num_graph_steps += 1
        return {name: t[:num].clone() for name, t in outputs.items()}

    def _capture(self, batch: State, size: int) -> tuple[torch.cuda.CUDAGraph, State, State]:
        inputs = {name: t[:1].expand(size, *t.shape[1:]).clone() for name, t in batch.items()}
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            self._forward(inputs)  # compiles what is compiled at first use: a capture must not
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                outputs = self._forward(inputs)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return graph, inputs, outputs
