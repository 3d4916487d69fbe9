"""A model on a workload with its ops' calls recorded: what `fastkernels capture` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from fastkernels.capture.record import MEGABYTE, Recorder
from fastkernels.capture.store import CaseSet, environment
from fastkernels.context import Phase
from fastkernels.engine.llm import LLM
from fastkernels.engine.outputs import RequestOutput
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.workloads import Workload

_PAGE_SIZE = 16
_MOST_PAGES = 4096

Calls = Counter[tuple[str, Phase | None]]


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
    max_num_batched_tokens: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[CaseSet, Calls, list[RequestOutput]]:
    """The cases, the number of calls by op and phase, and what the model said.

    max_num_batched_tokens: below the workload's prompt tokens, so that prefill, mixed and decode steps all occur.
    """
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
        params = SamplingParams(temperature=temperature, max_tokens=workload.output_len, ignore_eos=True)
        outputs = llm.generate(workload.token_ids(llm.tokenizer), params, progress)
    cases = CaseSet(recorder.cases, llm.core.info.model, workload.name, environment(torch.device(llm.core.info.device)))
    return cases, recorder.calls, outputs
