"""Offline use of models that make no tokens: one pass, or a number of steps, in batches of equal shapes."""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastkernels.dtypes import choose_dtype
from fastkernels.engine.config import EngineConfig, LoadFormat, Warm
from fastkernels.engine.model import build_model, find_device
from fastkernels.engine.model_source import build_config, check_experts, find_model
from fastkernels.engine.runners.batched import BATCH_SIZES
from fastkernels.engine.runners.iterative import IterativeRunner
from fastkernels.engine.runners.packed import PackedRunner
from fastkernels.engine.runners.single_pass import SinglePassRunner
from fastkernels.engine.task_core import TaskCore, TaskRequest, TaskRunner
from fastkernels.errors import UnsupportedError
from fastkernels.overlay import install
from fastkernels.registry import Architecture, Kind, architecture_of
from fastkernels.sets import ImplementationSet, resolve_set

Progress = Callable[[int, int], None]
"""Called after every step with the requests that have ended and their number."""

_WARM_EXAMPLES, _WARM_MOST = 3, 8
_PREPARED_BATCHES = 4
"""Batches of requests that are prepared at once: a clip of V-JEPA 2 takes 50 MB, and shapes that differ share them."""


def makes(architecture: Architecture) -> str:
    """The media type of what a model that makes no tokens makes."""
    module, _, name = architecture.pipeline.partition(":")
    return str(getattr(getattr(importlib.import_module(module), name), "media_type", "application/json"))


class Pipeline:
    """A model ready to answer: the counterpart of LLM for pictures, sounds, boxes, scores and scenes.

    model: a checkpoint directory, a config.json, or a preset's name (both with random weights by seed). candidates:
        implementation sets that replace ops before the model is built. max_batch: requests in one step.
        max_num_batched_tokens: tokens in one step of a model of texts that are laid one behind another. load_format:
        as EngineConfig's.
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
        load_format: str = LoadFormat.AUTO,
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
            self.dtype = choose_dtype(dtype, config.torch_dtype)
            is_dummy = load_format == LoadFormat.DUMMY
            self.model = build_model(source, config, self.dtype, self.device, seed, is_dummy)
            module, _, name = self.architecture.pipeline.partition(":")
            self.adapter = getattr(importlib.import_module(module), name)(self.model, config, source.checkpoint)
        except BaseException:
            self.close()
            raise
        texts = getattr(self.adapter, "texts", ())
        self.core = TaskCore(self._runner(not enforce_eager, max_num_batched_tokens), max_batch, texts=texts)

    @classmethod
    def of(cls, config: EngineConfig) -> Pipeline:
        """Errors: UnsupportedError for what only engines of tokens do; UsageError for experts, which no other model
        has."""
        if config.tensor_parallel_size > 1:
            raise UnsupportedError(
                f"tensor_parallel_size is {config.tensor_parallel_size}; a model that makes no tokens runs on 1 device."
            )
        if config.enable_expert_parallel:
            check_experts(config.model, num_ranks=1)
        if config.is_fake:
            raise UnsupportedError("The fake device makes tokens, which this model does not; use cpu or cuda.")
        if config.tokenizer is not None:
            raise UnsupportedError(
                f"tokenizer is {config.tokenizer!r}; a model that makes no tokens has its own. Leave it out."
            )
        for name in ("num_pages", "max_model_len"):
            if getattr(config, name) is not None:
                raise UnsupportedError(
                    f"{name} is {getattr(config, name)}; a model that makes no tokens keeps no cache. Leave it out."
                )
        made = cls(
            config.model,
            config.candidates,
            dtype=config.dtype,
            device=config.device,
            seed=config.seed,
            max_batch=config.max_num_seqs,
            enforce_eager=config.enforce_eager,
            max_num_batched_tokens=config.max_num_batched_tokens,
            load_format=config.load_format,
        )
        if config.warm is Warm.FULL:
            made.warm()
        return made

    def warm(self) -> None:
        """Compile the kernels and capture the graphs of batches of the example requests' shapes, the smallest first:
        1, 2, 4 and 8 requests. Sizes for which the device's memory is too small are left for requests that need them.
        """
        examples = self.example_requests(_WARM_EXAMPLES)
        batches = [[one] for one in examples[1:]]
        batches += [examples[:1] * size for size in BATCH_SIZES if size <= min(self.core.max_batch, _WARM_MOST)]
        for batch in batches:
            try:
                for _ in range(2):  # a graph is captured when its shapes come again
                    self.run(batch)
            except torch.OutOfMemoryError:
                return

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
