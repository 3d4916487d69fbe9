"""Models that answer in one pass over texts laid one behind another: no text is padded to the longest beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from fastkernels.engine.runners.batched import BatchedForward, State
from fastkernels.errors import UsageError

_LEAST_TOKENS, MOST_GRAPH_TOKENS = 64, 1024
"""Of a padded step. In larger ones the launches that a CUDA graph saves are hidden behind the work."""

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

    pads: rows, requests and the longest length are rounded up to a few sizes, so that steps can be CUDA graphs; the
    padding is rows and empty requests behind the last. None: on a GPU.
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
        self.model, self.device, self.uses_graphs = model, device, uses_graphs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.pads = device.type == "cuda" if pads is None else pads
        self._forwards: dict[tuple[int, bool], BatchedForward] = {}

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

    def advance(self, states: Sequence[State], steps: Sequence[int]) -> list[State]:
        lens = [num_rows(state) for state in states]
        ends = torch.tensor(lens).cumsum(0).tolist()
        batch = {name: torch.cat([state[name] for state in states]) for name in states[0]}
        num_tokens, num_seqs, longest = ends[-1], len(states), max(lens)
        if self.pads:
            num_tokens, longest = (padded_size(n, _LEAST_TOKENS) for n in (num_tokens, longest))
            num_seqs = padded_size(num_seqs, 1)
        batch = {name: _padded(t, num_tokens) for name, t in batch.items()}
        starts = torch.tensor([0, *ends] + [ends[-1]] * (num_seqs - len(states)), dtype=torch.int32)
        [result] = self._forward(num_tokens, longest)([{**batch, "query_start_loc": starts}])
        spans = zip([0, *ends[:-1]], ends, strict=True)
        own = self.model.per_request
        return [
            {name: t[i] if name in own else t[start:end] for name, t in result.items()}
            for i, (start, end) in enumerate(spans)
        ]

    def finish(self, state: State) -> Any:
        return self.model.finish(state)

    @property
    def num_graph_steps(self) -> int:
        return sum(forward.num_graph_steps for forward in self._forwards.values())

    def _forward(self, num_tokens: int, longest: int) -> BatchedForward:
        is_small = num_tokens <= MOST_GRAPH_TOKENS
        if (longest, is_small) not in self._forwards:
            forward = BatchedForward(partial(self._run, longest), self.device, self.uses_graphs and is_small)
            self._forwards[longest, is_small] = forward
        return self._forwards[longest, is_small]

    def _run(self, longest: int, batch: State) -> State:
        """One packed batch, of which BatchedForward says that it is a batch of one."""
        one = {name: t[0] for name, t in batch.items()}
        starts = one.pop("query_start_loc")
        return {name: t[None] for name, t in self.model.forward_packed(one, starts, longest).items()}


def num_rows(state: State) -> int:
    return len(next(iter(state.values())))


def padded_size(num: int, least: int) -> int:
    """The next power of two up to 1024, above it the next multiple of 512."""
    if num > MOST_GRAPH_TOKENS:
        return -(-num // 512) * 512
    return max(least, 1 << (num - 1).bit_length())


def _padded(tensor: Tensor, num: int) -> Tensor:
    if len(tensor) == num:
        return tensor
    return torch.cat((tensor, tensor.new_zeros(num - len(tensor), *tensor.shape[1:])))
