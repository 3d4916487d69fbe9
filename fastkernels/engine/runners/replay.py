"""CUDA graphs of a function of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]
"""Tensors by name, without a batch axis for one request, with it in front for a batch."""


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


def unowned(tensor: Tensor) -> Tensor:
    """The same memory, not kept alive: each replay's results are read before another graph may write there."""
    storage = tensor.untyped_storage()
    raw = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), tensor.device, storage.nbytes())
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(raw, tensor.storage_offset(), tensor.shape, tensor.stride())
