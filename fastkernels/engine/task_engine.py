"""A model that makes no tokens behind an engine's interface: what the engine's process hosts instead of EngineCore."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from tokenizers import Tokenizer

from fastkernels.engine.config import EngineConfig
from fastkernels.engine.outputs import EncodedResult, EngineInfo, EngineStats, FinishReason
from fastkernels.engine.pipeline import Pipeline
from fastkernels.engine.replacements import kernels_of
from fastkernels.engine.task_output import TaskOutput, TaskRequest
from fastkernels.errors import FastKernelsError
from fastkernels.workloads import byte_tokenizer


class TaskEngine:
    """Requests in, results out, each as bytes that a server can send on.

    isolates_errors: as TaskCore's.
    Errors: UnsupportedError for what only engines of tokens do; those of Pipeline.
    """

    def __init__(self, config: EngineConfig, isolates_errors: bool = True) -> None:
        started = time.perf_counter()
        self.pipeline = Pipeline.of(config)
        self.core = self.pipeline.core
        self.core.isolates_errors, self.core.max_num_waiting = isolates_errors, config.max_num_waiting
        self.tokenizer: Tokenizer = byte_tokenizer()  # the parent's end expects one; no route of this model uses it
        self._finished: Counter[str] = Counter()
        weights = self.pipeline.model.parameters()
        self.info = EngineInfo(
            model=self.pipeline.name,
            dtype=str(self.pipeline.dtype).removeprefix("torch."),
            device=str(self.pipeline.device),
            vocab_size=0,
            max_model_len=0,
            eos_token_ids=frozenset(),
            num_pages=0,
            page_size=config.page_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=0,
            tensor_parallel_size=1,
            startup_seconds=time.perf_counter() - started,
            weight_bytes=sum(p.numel() * p.element_size() for p in weights),
            kind=self.pipeline.architecture.kind.value,
            makes=getattr(self.pipeline.adapter, "media_type", "application/json"),
        )

    @property
    def has_unfinished(self) -> bool:
        return self.core.has_unfinished

    def check(self, request: TaskRequest) -> None:
        """There is nothing to look at before `add`."""

    def add(self, request: TaskRequest) -> None:
        """Errors: those of the model's `prepare` for its inputs; UnsupportedError when too many wait."""
        self.core.add(request)

    def abort(self, request_ids: Iterable[str]) -> None:
        self.core.abort(request_ids)

    def step(self) -> list[TaskOutput]:
        """What is new of each request. Errors: those of `check_device`."""
        outputs = [_encoded(output) for output in self.core.step()]
        self._finished.update(output.finish_reason.value for output in outputs if output.finish_reason is not None)
        if any(output.finish_reason is FinishReason.ERROR for output in outputs):
            self.check_device()
        return outputs

    def when_failed(self, tell: Callable[[FastKernelsError], None]) -> None:
        """Nothing but a step can fail here."""

    def check_device(self) -> None:
        """After an error. Raises the device's own where it is of no more use: every later request would meet it."""
        if self.pipeline.device.type == "cuda":
            torch.cuda.synchronize(self.pipeline.device)

    def stats(self) -> EngineStats:
        num, most = self.core.num_unfinished, self.core.max_batch
        is_cuda = self.pipeline.device.type == "cuda"
        return EngineStats(
            num_running=min(num, most),
            num_waiting=max(0, num - most),
            num_free_pages=0,
            num_steps=self.core.num_steps,
            num_graph_steps=getattr(self.core.runner, "num_graph_steps", 0),
            num_prompt_tokens=0,
            num_cached_tokens=0,
            num_generated_tokens=0,
            num_preemptions=0,
            num_finished=dict(self._finished),
            peak_memory_bytes=torch.cuda.max_memory_allocated(self.pipeline.device) if is_cuda else 0,
        )

    def kernels(self) -> list[dict[str, Any]]:
        """Every op in the model, by name, with the set that serves it."""
        return kernels_of(self.pipeline.model, self.pipeline.overlay)

    def close(self) -> None:
        self.pipeline.close()


def _encoded(output: TaskOutput) -> TaskOutput:
    """The result as bytes: the parent has no need of torch."""
    return output if output.result is None else output.with_result(encoded_result(output.result))


def encoded_result(result: Any) -> EncodedResult:
    """What a pipeline's `finish` gave, as bytes."""
    media_type, content = result.encoded()
    return EncodedResult(media_type, content, result.to_json())
