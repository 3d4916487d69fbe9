"""A model on a workload with its ops' calls recorded: what `fastkernels capture` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastkernels.capture.record import MEGABYTE, Recorder
from fastkernels.capture.store import CaseSet, environment
from fastkernels.context import Phase
from fastkernels.engine.llm import LLM
from fastkernels.engine.model_source import find_model
from fastkernels.engine.pipeline import Pipeline
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.registry import Kind, architecture_of
from fastkernels.workloads import Workload

_PAGE_SIZE = 16
_MOST_PAGES = 4096

Calls = Counter[tuple[str, Phase | None]]


class CaptureInterrupted(KeyboardInterrupt):
    """Ctrl-C or an end signal in the middle of a run. cases, calls: those of the steps before it."""

    def __init__(self, cases: CaseSet, calls: Calls) -> None:
        super().__init__()
        self.cases, self.calls = cases, calls


def capture(
    model: str | Path,
    workload: Workload,
    *,
    ops: Iterable[str] | None = None,
    keep: int = 1,
    budget_mb: int = 256,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    seed: int = 0,
    temperature: float = 0.0,
    sampling: Mapping[str, Any] | None = None,
    max_num_batched_tokens: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[CaseSet, Calls, list[Any]]:
    """The cases, the number of calls by op and phase, and what the model said.

    Of a model that makes no tokens the workload gives the number of requests alone: they are the pipeline's examples.
    sampling: further fields of SamplingParams, such as what makes the engine call the ops that edit logits.
    max_num_batched_tokens: below the workload's prompt tokens, so that prefill, mixed and decode steps all occur.

    Errors: CaptureInterrupted, with what was recorded, where the run is interrupted.
    """
    if architecture_of(find_model(model).hf_config).kind is not Kind.AUTOREGRESSIVE:
        with Recorder(ops, keep=keep, budget_bytes=budget_mb * MEGABYTE) as recorder:
            pipeline = Pipeline(model, dtype=dtype, device=device, seed=seed, max_batch=4, enforce_eager=True)
            place = (pipeline.name, "examples", environment(pipeline.device))
            with _keeping(recorder, place):
                results = pipeline.run(pipeline.example_requests(workload.num_requests, seed), progress)
        return CaseSet(recorder.cases, *place), recorder.calls, results
    with Recorder(ops, keep=keep, budget_bytes=budget_mb * MEGABYTE) as recorder:
        llm = LLM(
            model,
            dtype=dtype,
            device=device,
            num_pages=_MOST_PAGES,
            page_size=_PAGE_SIZE,
            max_num_batched_tokens=max_num_batched_tokens,
            seed=seed,
            enforce_eager=True,
            enable_prefix_caching=False,
        )
        fields = {"temperature": temperature, **(sampling or {})}
        params = SamplingParams(max_tokens=workload.output_len, ignore_eos=True, **fields)
        prompts: Any = workload.token_ids(llm.tokenizer)
        if llm.processor is not None:
            prompts = llm.processor.example_prompts(prompts, seed)
        place = (llm.core.info.model, workload.name, environment(torch.device(llm.core.info.device)))
        with _keeping(recorder, place):
            outputs = llm.generate(prompts, params, use_tqdm=False, progress=progress)
    return CaseSet(recorder.cases, *place), recorder.calls, outputs


@contextmanager
def _keeping(recorder: Recorder, place: tuple[str, str, dict[str, Any]]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise CaptureInterrupted(CaseSet(recorder.cases, *place), recorder.calls) from error
