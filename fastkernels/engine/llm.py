"""Offline use of the engine: a model, its caches, and `generate`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from fastkernels.engine.config import EngineConfig
from fastkernels.engine.core import EngineCore
from fastkernels.engine.multimodal import ProcessedPrompt, PromptLike, find_processor, read_prompt
from fastkernels.engine.output_processor import OutputProcessor
from fastkernels.engine.outputs import RequestOutput
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import UsageError
from fastkernels.sets import ImplementationSet

Progress = Callable[[int, int], None]
"""Called after every step with the tokens made so far and the most that can come."""


_MOST_READERS = 8


class LLM:
    """A model ready to generate; used as vLLM's LLM.

    model: a Hugging Face checkpoint directory, the path of a config.json, or a preset's name (both with random
        weights by seed). candidates: implementation sets, by name or folder, that replace ops before the model is
        built. The other options are those of EngineConfig.
    Errors: UsageError names an option that EngineConfig lacks; those of the model and of the candidates.
    """

    def __init__(
        self, model: str | Path, candidates: Sequence[str | Path | ImplementationSet] = (), **options: Any
    ) -> None:
        known = {field.name for field in fields(EngineConfig)}
        for name in options:
            if name not in known:
                raise UsageError(f"LLM has no option {name!r}; it has {', '.join(sorted(known))}.")
        for name in ("dtype", "device"):
            if isinstance(options.get(name), torch.dtype | torch.device):
                options[name] = str(options[name]).removeprefix("torch.")
        named = tuple(str(c.path if isinstance(c, ImplementationSet) else c) for c in candidates)
        self.core = EngineCore(EngineConfig(model=str(model), candidates=named, **options))
        self.tokenizer = self.core.tokenizer
        self.processor = find_processor(str(model), self.tokenizer) if self.core.info.takes_media else None
        self._processor = OutputProcessor(self.tokenizer, self.core.info.eos_token_ids)

    def generate(
        self,
        prompts: str | Mapping[str, Any] | Sequence[PromptLike],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: Progress | None = None,
    ) -> list[RequestOutput]:
        """Continue the prompts; the outputs are in their order.

        prompts: texts, lists of token ids, or {"prompt": ... or "prompt_token_ids": ..., "multi_modal_data": {"image":
            one or a list, "video": ..., "audio": ...}} where the model takes more than text.
        Errors: UnsupportedError names the limit that a request exceeds, UsageError what is wrong with a prompt; then
            none is run.
        """
        texts: list[PromptLike] = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        each = list(params) if isinstance(params, Sequence) else [params or SamplingParams()] * len(texts)
        if len(each) != len(texts):
            raise UsageError(f"{len(texts)} prompts came with {len(each)} SamplingParams; give one, or one each.")
        processor = self._processor
        names: list[str] = []
        try:
            for i, (prompt, one) in enumerate(zip(self._read(texts), each, strict=True)):
                extras = (False, prompt.media, prompt.encoder_input)
                for request in processor.add(str(i), prompt.text, prompt.token_ids, one, *extras):
                    self.core.add(request)
                    names.append(request.request_id)
            return self._run(processor, len(texts), sum(p.n * p.max_tokens for p in each), progress)
        finally:
            for i in range(len(texts)):
                processor.abort(str(i))
            self.core.abort(names)
            while self.core.has_unfinished:
                self.core.step()

    def _read(self, prompts: Sequence[PromptLike]) -> Iterator[ProcessedPrompt]:
        """In their order. Pictures, videos and sounds take some ten milliseconds of a core each: several at once."""
        if sum(isinstance(p, Mapping) and "multi_modal_data" in p for p in prompts) < 2:
            yield from (read_prompt(p, self.tokenizer, self.processor) for p in prompts)
            return
        with ThreadPoolExecutor(min(_MOST_READERS, len(prompts), os.cpu_count() or 1)) as readers:
            yield from readers.map(lambda p: read_prompt(p, self.tokenizer, self.processor), prompts)

    def close(self) -> None:
        """End what runs beside this process: the other ranks of a tensor-parallel engine."""
        self.core.close()

    def replacements(self) -> list[dict[str, Any]]:
        """What became of every op that a candidate replaces: set, status and number of calls."""
        return [line for line in self.core.kernels() if line["status"] != "BASELINE"]

    def _run(
        self, processor: OutputProcessor, num_requests: int, most: int, progress: Progress | None
    ) -> list[RequestOutput]:
        latest: dict[str, RequestOutput] = {}
        num_made = 0
        while self.core.has_unfinished:
            news = self.core.step()
            outputs, ended = processor.process(news, only_finished=True)
            latest.update((output.request_id, output) for output in outputs)
            if ended:
                self.core.abort(ended)
            if progress is not None:
                num_made += sum(len(output.token_ids) for output in news)
                progress(num_made, most)
        return [latest[str(i)] for i in range(num_requests)]
