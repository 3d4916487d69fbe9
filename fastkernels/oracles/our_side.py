"""Our model as the engine runs it, with the interface of a side of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastkernels.engine.llm import LLM
from fastkernels.engine.pipeline import Pipeline
from fastkernels.engine.runners.batched import BATCH_SIZES
from fastkernels.engine.runners.packed import MOST_GRAPH_TOKENS, PackedRunner
from fastkernels.engine.runners.replay import State, capture
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.oracles.language import LanguageOracle
from fastkernels.oracles.oracle import Answer, Load, Oracle, Request
from fastkernels.registry import Architecture, Kind

_PAGE_SIZE = 16


class OurSide(Protocol):
    """call: what answers the requests of a load once, by the names of the oracle's answer."""

    model: nn.Module

    def prepare(self, request: Request) -> State: ...

    def call(self, load: Load, requests: Sequence[Request]) -> Callable[[], Answer]: ...


def our_side(
    architecture: Architecture,
    oracle: Oracle,
    sizes: Mapping[str, Any],
    config: Path,
    dtype: str,
    device: torch.device,
    enforce_eager: bool = False,
) -> OurSide:
    """Built from what the oracle saved of its configuration, with weights that are to be replaced."""
    if architecture.kind is Kind.AUTOREGRESSIVE:
        assert isinstance(oracle, LanguageOracle), f"{architecture.name} makes tokens, and its oracle is no such."
        return _Tokens(oracle, sizes, config, dtype, device, enforce_eager)
    return _Tensors(config, dtype, device, enforce_eager)


class _Tensors:
    """A Pipeline, or one forward (or step) of it: on a GPU a replay of its CUDA graph where the engine has one."""

    def __init__(self, config: Path, dtype: str, device: torch.device, enforce_eager: bool) -> None:
        self.pipeline = Pipeline(config, device=str(device), dtype=dtype, enforce_eager=enforce_eager)
        self.model = self.pipeline.model
        self._uses_graphs = device.type == "cuda" and not enforce_eager

    def prepare(self, request: Request) -> State:
        return self.pipeline.adapter.prepare(request)

    def call(self, load: Load, requests: Sequence[Request]) -> Callable[[], Answer]:
        if load.is_whole:
            return lambda: _stacked([result.tensors for result in self.pipeline.run(requests)])
        states = [self.prepare(request) for request in requests]
        forward, batch, has_graph = self._forward(states)
        batch = {name: t.to(self.pipeline.device) for name, t in batch.items()}
        return _replayed(forward, batch, self.pipeline.device) if has_graph else lambda: forward(batch)

    def _forward(self, states: Sequence[State]) -> tuple[Callable[[State], State], State, bool]:
        adapter = self.pipeline.adapter
        if isinstance(runner := self.pipeline.core.runner, PackedRunner):
            batch, longest, ends = runner.packed(states)

            def packed(given: State) -> State:
                own, result = adapter.per_request, runner.forward(longest, given)
                return {name: t[: len(states) if name in own else ends[-1]] for name, t in result.items()}

            return packed, batch, self._uses_graphs and ends[-1] <= MOST_GRAPH_TOKENS
        batch = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        if self.pipeline.architecture.kind is Kind.ITERATIVE:
            batch["step"] = torch.zeros(len(states), dtype=torch.int64)

            def advance(given: State) -> State:
                return adapter.advance({n: t for n, t in given.items() if n != "step"}, given["step"])

            return advance, batch, self._uses_graphs
        return adapter.forward, batch, self._uses_graphs and len(states) <= BATCH_SIZES[-1]


class _Tokens:
    """An LLM whose pages, rows and longest step are those of the largest load."""

    def __init__(
        self,
        oracle: LanguageOracle,
        sizes: Mapping[str, Any],
        config: Path,
        dtype: str,
        device: torch.device,
        enforce_eager: bool,
    ) -> None:
        most, longest = max(n for load in oracle.loads for n in load.batches), oracle.max_len(sizes)
        pages = -(-longest // _PAGE_SIZE) + -(-sizes.get("max_source_positions", 0) // _PAGE_SIZE) + 2
        self.llm = LLM(
            config,
            device=str(device),
            dtype=dtype,
            max_model_len=longest + 1,
            max_num_seqs=most,
            max_num_batched_tokens=max(8192, most * longest),
            page_size=_PAGE_SIZE,
            num_pages=most * pages + 1,
            enable_prefix_caching=False,
            enforce_eager=enforce_eager,
        )
        self.model: nn.Module = self.llm.core.executor.model  # type: ignore[attr-defined]
        self._kept: list[Tensor] = []
        compute: Callable[[Tensor], Tensor] = self.model.compute_logits  # type: ignore[assignment]

        def keep(hidden: Tensor) -> Tensor:
            logits = compute(hidden)
            self._kept[:] = [logits]
            return logits

        self.model.compute_logits = keep  # type: ignore[assignment]

    def prepare(self, request: Request) -> State:
        raise NotImplementedError("Requests of a model that makes tokens run whole.")

    def call(self, load: Load, requests: Sequence[Request]) -> Callable[[], Answer]:
        params = [SamplingParams(temperature=0, max_tokens=r["max_tokens"], ignore_eos=True) for r in requests]
        names = ("prompt_token_ids", "multi_modal_data")
        given = [{name: request[name] for name in names if name in request} for request in requests]

        def run() -> Answer:
            outputs = self.llm.generate(given, params, use_tqdm=False)
            tokens = torch.tensor([output.outputs[0].token_ids for output in outputs])
            logits = {"logits": self._kept[0]} if requests[0]["max_tokens"] == 1 else {}
            return {**logits, "token_ids": tokens}

        return run


def _stacked(results: Sequence[Mapping[str, Tensor]]) -> Answer:
    return {name: torch.stack([result[name] for result in results]) for name in results[0]}


def _replayed(forward: Callable[[State], State], batch: State, device: torch.device) -> Callable[[], Answer]:
    with torch.inference_mode():
        captured = capture(forward, batch, device)

    def replay() -> Answer:
        captured.graph.replay()
        return captured.outputs

    return replay
