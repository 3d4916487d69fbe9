"""Offline use of the engine: a model, its caches, and `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fastkernels.dtypes import find_dtype
from fastkernels.engine.cache import allocate_caches
from fastkernels.engine.model import (
    build_config,
    build_model,
    find_device,
    find_model,
    find_tokenizer,
)
from fastkernels.engine.request import Request, RequestOutput, SamplingParams
from fastkernels.engine.runner import Runner
from fastkernels.engine.scheduler import Scheduler, SchedulerLimits
from fastkernels.errors import UsageError
from fastkernels.overlay import Overlay, install
from fastkernels.sets import ImplementationSet, resolve_set

Progress = Callable[[int, int], None]
"""Called after every step with the tokens made so far and the most that can come."""


class LLM:
    """A model ready to generate.

    model: a Hugging Face checkpoint directory, the path of a config.json, or a preset's name (both with random
        weights by seed). dtype, device None: the configuration's dtype, the GPU when there is one.
    num_pages, page_size: the KV cache, shared by all requests. max_num_batched_tokens: tokens in one step.
    candidates: implementation sets, by name or folder, that replace ops before the model is built.
    """

    def __init__(
        self,
        model: str | Path,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        num_pages: int = 512,
        page_size: int = 16,
        max_num_batched_tokens: int = 8192,
        max_num_seqs: int = 256,
        seed: int = 0,
        candidates: Sequence[str | Path | ImplementationSet] = (),
    ) -> None:
        self.source = find_model(model)
        self.device = find_device(device)
        self.overlay: Overlay | None = install([_as_set(c) for c in candidates]) if candidates else None
        self.config = build_config(self.source)
        self.dtype = find_dtype(dtype or self.config.torch_dtype)
        self.tokenizer = find_tokenizer(self.source)
        self.eos_token_ids = frozenset(self.config.eos_token_ids)
        limits = SchedulerLimits(
            num_pages=num_pages,
            page_size=page_size,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            max_model_len=self.config.max_position_embeddings,
            vocab_size=self.config.vocab_size,
        )
        self.scheduler = Scheduler(limits)
        self.model = build_model(self.source, self.config, self.dtype, self.device, seed)
        self.caches = allocate_caches(self.model, num_pages, page_size, self.dtype, self.device)
        self.runner = Runner(self.model, self.device, page_size, seed)
        self.num_steps = 0

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: Progress | None = None,
    ) -> list[RequestOutput]:
        """Continue the prompts (texts, or lists of token ids); the outputs are in their order.

        Errors: UnsupportedError names the limit that a request exceeds; then none is run.
        """
        texts: list[str | Sequence[int]] = [prompts] if isinstance(prompts, str) else list(prompts)
        each = list(params) if isinstance(params, Sequence) else [params or SamplingParams()] * len(texts)
        if len(each) != len(texts):
            raise UsageError(f"{len(texts)} prompts came with {len(each)} SamplingParams; give one, or one each.")
        requests = [self._request(i, text, p) for i, (text, p) in enumerate(zip(texts, each, strict=True))]
        try:
            for request in requests:
                self.scheduler.add(request)
            self._run(requests, progress)
        finally:
            self.scheduler.abort_all()
        return [self._output(request, text) for request, text in zip(requests, texts, strict=True)]

    def _run(self, requests: Sequence[Request], progress: Progress | None) -> None:
        most = sum(request.params.max_tokens for request in requests)
        while self.scheduler.has_unfinished:
            rows = self.scheduler.schedule()
            sampled = self.runner.step(rows)
            self.scheduler.update(rows, sampled, self.eos_token_ids)
            self.num_steps += 1
            if progress is not None:
                progress(sum(len(request.output_ids) for request in requests), most)

    def _request(self, index: int, text: str | Sequence[int], params: SamplingParams) -> Request:
        tokens = self.tokenizer.encode(text).ids if isinstance(text, str) else [int(t) for t in text]
        return Request(index, len(tokens), list(tokens), params)

    def _output(self, request: Request, text: str | Sequence[int]) -> RequestOutput:
        assert request.finish_reason is not None
        return RequestOutput(
            request_id=request.request_id,
            prompt=text if isinstance(text, str) else None,
            prompt_token_ids=tuple(request.tokens[: request.prompt_len]),
            token_ids=tuple(request.output_ids),
            text=self.tokenizer.decode(request.output_ids),
            finish_reason=request.finish_reason,
            num_preemptions=request.num_preemptions,
        )


def _as_set(candidate: str | Path | ImplementationSet) -> ImplementationSet:
    return candidate if isinstance(candidate, ImplementationSet) else resolve_set(str(candidate))
