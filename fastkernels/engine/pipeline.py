"""Offline use of models that make no tokens: one pass, or a number of steps, in batches of equal shapes."""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastkernels.dtypes import find_dtype
from fastkernels.engine.model import build_config, build_model, find_device, find_model
from fastkernels.engine.runners.iterative import IterativeRunner
from fastkernels.engine.runners.packed import PackedRunner
from fastkernels.engine.runners.single_pass import SinglePassRunner
from fastkernels.engine.task_core import TaskCore, TaskRequest, TaskRunner
from fastkernels.errors import UnsupportedError
from fastkernels.overlay import install
from fastkernels.registry import Kind, architecture_of
from fastkernels.sets import ImplementationSet, resolve_set

Progress = Callable[[int, int], None]
"""Called after every step with the requests that have ended and their number."""

_PREPARED_BATCHES = 4
"""Batches of requests that are prepared at once: a clip of V-JEPA 2 takes 50 MB, and shapes that differ share them."""


class Pipeline:
    """A model ready to answer: the counterpart of LLM for pictures, sounds, boxes, scores and scenes.

    model: a checkpoint directory, a config.json, or a preset's name (both with random weights by seed). candidates:
        implementation sets that replace ops before the model is built. max_batch: requests in one step.
        max_num_batched_tokens: tokens in one step of a model of texts that are laid one behind another.
    Errors: UnsupportedError for a model that makes tokens: use LLM; those of the model and of the candidates.
    """

    def __init__(
        self,
        model: str | Path,
        candidates: Sequence[str | Path | ImplementationSet] = (),
        *,
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
        seed: int = 0,
        max_batch: int = 64,
        enforce_eager: bool = False,
        max_num_batched_tokens: int = 8192,
    ) -> None:
        source = find_model(model)
        self.architecture = architecture_of(source.hf_config)
        if self.architecture.kind is Kind.AUTOREGRESSIVE:
            raise UnsupportedError(f"{source.name} makes tokens; use LLM, or `fastkernels generate` with a prompt.")
        self.name, self.device = source.name, find_device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device.index or 0)
        sets = [c if isinstance(c, ImplementationSet) else resolve_set(str(c)) for c in candidates]
        self.overlay = install(sets) if sets else None
        try:
            config = build_config(source)
            self.dtype = find_dtype(dtype or config.torch_dtype)
            self.model = build_model(source, config, self.dtype, self.device, seed)
            module, _, name = self.architecture.pipeline.partition(":")
            self.adapter = getattr(importlib.import_module(module), name)(self.model, config, source.checkpoint)
        except BaseException:
            self.close()
            raise
        self.core = TaskCore(self._runner(not enforce_eager, max_num_batched_tokens), max_batch)

    def _runner(self, uses_graphs: bool, max_num_batched_tokens: int) -> TaskRunner:
        if hasattr(self.adapter, "forward_packed"):
            return PackedRunner(self.adapter, self.device, uses_graphs, max_num_batched_tokens)
        runner = SinglePassRunner if self.architecture.kind is Kind.SINGLE_PASS else IterativeRunner
        return runner(self.adapter, self.device, uses_graphs)

    def run(self, requests: Sequence[Mapping[str, Any]], progress: Progress | None = None) -> list[Any]:
        """The results of the requests, in their order; they are prepared as their turn comes.

        Errors: UsageError says what is wrong with a request; then there is no result of any.
        """
        names = [str(i) for i in range(len(requests))]
        waiting = deque(zip(names, requests, strict=True))
        most = min(_PREPARED_BATCHES * self.core.max_batch, self.core.max_num_waiting)
        results: dict[str, Any] = {}
        try:
            while waiting or self.core.has_unfinished:
                while waiting and self.core.num_unfinished < most:
                    self.core.add(TaskRequest(*waiting.popleft()))
                results |= {news.request_id: news.result for news in self.core.step() if news.finish_reason}
                if progress is not None:
                    progress(len(results), len(names))
        finally:
            self.core.abort(names)
            while self.core.has_unfinished:
                self.core.step()
        return [results[name] for name in names]

    def example_requests(self, num: int, seed: int = 0) -> list[dict[str, Any]]:
        """Requests of the model's own kind, for captures and measurements."""
        return self.adapter.example_requests(num, seed)

    def close(self) -> None:
        """Put back the ops that candidates replaced."""
        if self.overlay is not None:
            self.overlay.remove()
            self.overlay = None
