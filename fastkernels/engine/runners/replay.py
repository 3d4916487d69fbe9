"""CUDA graphs of a function of tensors: captured, and kept by key while they are few."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from weakref import ref

import torch
from torch import Tensor

State = dict[str, Tensor]
"""Tensors by name, without a batch axis for one request, with it in front for a batch."""

Sources = Mapping[str, Sequence[Tensor]]
"""By input, the tensors that it is made of."""

_MOST_GRAPHS, _MOST_BYTES, _MOST_INPUT_BYTES = 64, 4 << 30, 8 << 30
"""BGE-M3's graph of 16384 tokens needs some 0.3 GiB, and all its sizes 4, were none captured into memory of another.
Graphs of V-JEPA 2 read 50 MB a clip, those of all batch sizes 6.4 GB; Pi0's 15 MB of keys and values a request, 1.9 GB
for each length of prompt (all reckoned from the layers' widths)."""


@dataclass(frozen=True)
class Captured:
    """inputs: the graph reads them where they are, so that they must live as long as it does. num_bytes: by which the
    capture enlarged the memory that torch holds, inputs left out. sources: what an input was last made of, where the
    caller says so."""

    graph: torch.cuda.CUDAGraph
    inputs: State
    outputs: State
    num_bytes: int
    sources: dict[str, list[ref[Tensor]]] = field(default_factory=dict)


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
        renew_cublas_workspaces()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):  # type: ignore[arg-type]
            before = torch.cuda.memory_reserved(device)
            outputs = forward(inputs)
            num_bytes = torch.cuda.memory_reserved(device) - before
    torch.cuda.current_stream(device).wait_stream(stream)
    return Captured(graph, inputs, outputs, num_bytes)


def renew_cublas_workspaces() -> None:
    """Before a capture: in it cuBLAS takes its workspaces anew, from the graph's own memory, which lives as long as the
    graph. Others may be freed under a graph that writes to them: torch.compile frees them all before it captures."""
    torch._C._cuda_clearCublasWorkspaces()


class GraphCache:
    """Calls by key, whose second is captured and later ones replayed: a key that comes once costs no capture.

    A key stands for one function and one set of shapes. Of more than most_graphs, or of those whose own copies of their
    inputs take more than most_input_bytes together, the least recently used is forgotten.
    All share one pool of memory, in which each writes over what the others gave: a call's result is a copy. A pool that
    has grown to most_bytes is given back with all its graphs before another is captured.
    """

    def __init__(
        self,
        device: torch.device,
        most_graphs: int = _MOST_GRAPHS,
        most_bytes: int = _MOST_BYTES,
        most_input_bytes: int = _MOST_INPUT_BYTES,
    ) -> None:
        self.device, self.most_graphs, self.most_bytes = device, most_graphs, most_bytes
        self.most_input_bytes = most_input_bytes
        self.num_replays = self.num_bytes = self.num_input_bytes = 0
        self._graphs: dict[object, Captured] = {}
        self._seen: set[object] = set()
        self._stream: torch.cuda.Stream | None = None
        self._pool: object = None

    def stale(self, key: object, sources: Sources) -> Collection[str]:
        """The inputs that a call must bring: all but those that the key's graph holds of these very tensors, which
        nobody has written to since."""
        if key not in self._graphs:
            return sources
        held = self._graphs[key].sources
        return [name for name, given in sources.items() if not _are(held.get(name, ()), given)]

    def __call__(
        self, key: object, forward: Callable[[State], State], batch: State, sources: Sources | None = None
    ) -> State:
        """forward(batch); batch: on the device; sources: what each input is made of, if it may leave out those that are
        not `stale`."""
        if key not in self._seen:
            self._seen.add(key)
            return forward(batch)
        captured = self._graphs.pop(key, None) or self._capture(forward, batch)
        self._graphs[key] = captured
        while len(self._graphs) > 1 and self._is_over:  # torch takes no graph into a pool that has lost its last
            self._forget(next(iter(self._graphs)))
        for name, t in batch.items():
            captured.sources.pop(name, None)
            captured.inputs[name].copy_(t)
        captured.sources.update({name: [ref(t) for t in given] for name, given in (sources or {}).items()})
        captured.graph.replay()
        self.num_replays += 1
        return {name: t.clone() for name, t in captured.outputs.items()}

    @property
    def _is_over(self) -> bool:
        return len(self._graphs) > self.most_graphs or self.num_input_bytes > self.most_input_bytes

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
        self.num_input_bytes += _num_bytes(inputs)
        return replace(captured, outputs={name: unowned(t) for name, t in captured.outputs.items()})

    def _forget(self, key: object) -> None:
        self.num_input_bytes -= _num_bytes(self._graphs.pop(key).inputs)
        self._seen.remove(key)


def _are(held: Sequence[ref[Tensor]], given: Sequence[Tensor]) -> bool:
    return len(held) == len(given) and all(one() is other for one, other in zip(held, given, strict=True))


def _num_bytes(state: State) -> int:
    return sum(t.nbytes for t in state.values())


def unowned(tensor: Tensor) -> Tensor:
    """The same memory, not kept alive: each replay's results are read before another graph may write there."""
    storage = tensor.untyped_storage()
    raw = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), tensor.device, storage.nbytes())
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(raw, tensor.storage_offset(), tensor.shape, tensor.stride())
