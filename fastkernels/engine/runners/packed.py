"""Models that answer in one pass over texts laid one behind another: no text is padded to the longest beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from fastkernels.engine.runners.batched import shape_key
from fastkernels.engine.runners.replay import GraphCache, State
from fastkernels.errors import UsageError

_LEAST_TOKENS, MOST_GRAPH_TOKENS = 64, 16384
"""Of a padded step. In larger ones the GPU's work hides the launches that a CUDA graph saves: those of BGE-M3 take a
host 10.8 to 18.6 ms, whatever the tokens, and 2048 tokens an H200 4.0 ms (benchmarks/results/h200/first_look). At that
rate 16384 in short texts are 24 ms (reckoned)."""

_FINE_TOKENS = 1024
"""Up to here sizes are powers of two, for a GPU is not full; above, an eighth of one apart."""

_PACKED = "packed"


class PackedModel(Protocol):
    """prepare: one request's inputs, in each tensor a row a token. forward_packed: of rows of many requests, those of
    request i from query_start_loc[i] on; what `per_request` names has a row a request, the rest a row a token."""

    per_request: frozenset[str]

    def prepare(self, inputs: Mapping[str, Any]) -> State: ...

    def forward_packed(self, batch: State, query_start_loc: Tensor, max_query_len: int) -> State: ...

    def finish(self, result: State) -> Any: ...


class PackedRunner:
    """One step a request; as many of the oldest in it as have max_num_batched_tokens together, or one that has more.

    pads: rows, requests and the longest length of up to MOST_GRAPH_TOKENS are rounded up to a few sizes, so that steps
    can be CUDA graphs; the padding is rows and empty requests behind the last. None: on a GPU.
    """

    def __init__(
        self,
        model: PackedModel,
        device: torch.device,
        uses_graphs: bool = True,
        max_num_batched_tokens: int = 8192,
        pads: bool | None = None,
    ) -> None:
        if max_num_batched_tokens < 1:
            raise UsageError(f"max_num_batched_tokens is {max_num_batched_tokens}; the least is 1.")
        self.model, self.device = model, device
        self.max_num_batched_tokens = max_num_batched_tokens
        self.pads = device.type == "cuda" if pads is None else pads
        self.graphs = GraphCache(device) if uses_graphs and device.type == "cuda" else None

    def start(self, inputs: Mapping[str, Any]) -> tuple[State, int]:
        """A request's tensors, and its number of steps."""
        return self.model.prepare(inputs), 1

    def batch_key(self, state: State) -> str:
        """Any requests may share a step."""
        return _PACKED

    def num_in_step(self, states: Sequence[State]) -> int:
        """How many of the first fit into a step."""
        total = 0
        for i, state in enumerate(states):
            total += num_rows(state)
            if i and total > self.max_num_batched_tokens:
                return i
        return len(states)

    @torch.inference_mode()
    def advance(self, states: Sequence[State], steps: Sequence[int]) -> list[State]:
        batch, longest, ends = self.packed(states)
        batch = {name: t.to(self.device, non_blocking=True) for name, t in batch.items()}
        forward = partial(self.forward, longest)
        if self.graphs is not None and num_rows(batch) <= MOST_GRAPH_TOKENS:
            result = self.graphs((longest, shape_key(batch)), forward, batch)
        else:
            result = forward(batch)
        spans = zip([0, *ends[:-1]], ends, strict=True)
        own = self.model.per_request
        return [
            {name: t[i] if name in own else t[start:end] for name, t in result.items()}
            for i, (start, end) in enumerate(spans)
        ]

    def packed(self, states: Sequence[State]) -> tuple[State, int, list[int]]:
        """One batch with its query_start_loc, where the states are; its longest length; where each request ends."""
        lens = [num_rows(state) for state in states]
        ends = torch.tensor(lens).cumsum(0).tolist()
        batch = {name: torch.cat([state[name] for state in states]) for name in states[0]}
        num_seqs, longest = len(states), max(lens)
        if self.pads and ends[-1] <= MOST_GRAPH_TOKENS:
            num_tokens, longest = (padded_size(n, _LEAST_TOKENS) for n in (ends[-1], longest))
            num_seqs = padded_size(num_seqs, 1)
            batch = {name: _padded(t, num_tokens) for name, t in batch.items()}
        starts = [0, *ends] + [ends[-1]] * (num_seqs - len(states))
        return {**batch, "query_start_loc": torch.tensor(starts, dtype=torch.int32)}, longest, ends

    def forward(self, longest: int, batch: State) -> State:
        """Of what `packed` gives: rows and requests of the padding are at the ends of the results."""
        some = {name: t for name, t in batch.items() if name != "query_start_loc"}
        return self.model.forward_packed(some, batch["query_start_loc"], longest)

    def finish(self, state: State) -> Any:
        return self.model.finish(state)

    @property
    def num_graph_steps(self) -> int:
        return 0 if self.graphs is None else self.graphs.num_replays


def num_rows(state: State) -> int:
    return len(next(iter(state.values())))


def padded_size(num: int, least: int) -> int:
    """Up to 1024 the next power of two; above, the next eighth of the one below: less than an eighth more."""
    if num <= _FINE_TOKENS:
        return max(least, 1 << (num - 1).bit_length())
    step = 1 << num.bit_length() - 4
    return -(-num // step) * step


def _padded(tensor: Tensor, num: int) -> Tensor:
    if len(tensor) == num:
        return tensor
    return torch.cat((tensor, tensor.new_zeros(num - len(tensor), *tensor.shape[1:])))
