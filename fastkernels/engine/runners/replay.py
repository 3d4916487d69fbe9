"""CUDA graphs of a function of tensors: captured, and kept by key while they are few."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

State = dict[str, Tensor]
"""Tensors by name, without a batch axis for one request, with it in front for a batch."""

_MOST_GRAPHS, _MOST_BYTES = 64, 4 << 30
"""BGE-M3's graph of 16384 tokens needs some 0.3 GiB, and all its sizes 4, were none captured into memory of another
(reckoned from its layers' widths)."""


@dataclass(frozen=True)
class Captured:
    """inputs: the graph reads them where they are, so that they must live as long as it does. num_bytes: by which the
    capture enlarged the memory that torch holds, inputs left out."""

    graph: torch.cuda.CUDAGraph
    inputs: State
    outputs: State
    num_bytes: int


def capture(
    forward: Callable[[State], State],
    inputs: State,
    device: torch.device,
    stream: torch.cuda.Stream | None = None,
    pool: object = None,
) -> Captured:
    """A graph of forward(inputs), which is called twice. stream and pool: the same for graphs that share memory."""
    stream = torch.cuda.Stream(device) if stream is None else stream
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        forward(inputs)  # compiles what is compiled at first use: a capture must not
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):  # type: ignore[arg-type]
            before = torch.cuda.memory_reserved(device)
            outputs = forward(inputs)
            num_bytes = torch.cuda.memory_reserved(device) - before
    torch.cuda.current_stream(device).wait_stream(stream)
    return Captured(graph, inputs, outputs, num_bytes)


class GraphCache:
    """Calls by key, whose second is captured and later ones replayed: a key that comes once costs no capture.

    A key stands for one function and one set of shapes. Of more than most_graphs the least recently used is forgotten.
    All share one pool of memory, in which each writes over what the others gave: a call's result is a copy. A pool that
    has grown to most_bytes is given back with all its graphs before another is captured.
    """

    def __init__(self, device: torch.device, most_graphs: int = _MOST_GRAPHS, most_bytes: int = _MOST_BYTES) -> None:
        self.device, self.most_graphs, self.most_bytes = device, most_graphs, most_bytes
        self.num_replays = self.num_bytes = 0
        self._graphs: dict[object, Captured] = {}
        self._seen: set[object] = set()
        self._stream: torch.cuda.Stream | None = None
        self._pool: object = None

    def __call__(self, key: object, forward: Callable[[State], State], batch: State) -> State:
        """forward(batch); batch: on the device."""
        if key not in self._seen:
            self._seen.add(key)
            return forward(batch)
        captured = self._graphs.pop(key, None) or self._capture(forward, batch)
        self._graphs[key] = captured
        if len(self._graphs) > self.most_graphs:
            self._forget(next(iter(self._graphs)))
        for name, t in batch.items():
            captured.inputs[name].copy_(t)
        captured.graph.replay()
        self.num_replays += 1
        return {name: t.clone() for name, t in captured.outputs.items()}

    def _capture(self, forward: Callable[[State], State], batch: State) -> Captured:
        if self.num_bytes >= self.most_bytes:
            torch.cuda.synchronize(self.device)
            for key in list(self._graphs):
                self._forget(key)
            self._pool, self.num_bytes = None, 0
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        inputs = {name: t.clone() for name, t in batch.items()}
        captured = capture(forward, inputs, self.device, self._stream, self._pool)
        self.num_bytes += captured.num_bytes
        return replace(captured, outputs={name: unowned(t) for name, t in captured.outputs.items()})

    def _forget(self, key: object) -> None:
        del self._graphs[key]
        self._seen.remove(key)


def unowned(tensor: Tensor) -> Tensor:
    """The same memory, not kept alive: each replay's results are read before another graph may write there."""
    storage = tensor.untyped_storage()
    raw = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), tensor.device, storage.nbytes())
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(raw, tensor.storage_offset(), tensor.shape, tensor.stride())
