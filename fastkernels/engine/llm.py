"""Offline use of the engine: a model, its caches, and what they make of prompts."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from fastkernels.engine import outputs
from fastkernels.engine.chat import chat_template_of, find_chat_template, transformers_tokenizer
from fastkernels.engine.core import EngineCore
from fastkernels.engine.messages import media_of, render_chat
from fastkernels.engine.model_source import find_model
from fastkernels.engine.multimodal import (
    ProcessedPrompt,
    Processor,
    PromptLike,
    as_prompts,
    find_processor,
    read_prompt,
    split_prompt,
)
from fastkernels.engine.output_processor import OutputProcessor
from fastkernels.engine.pipeline import makes
from fastkernels.engine.results import (
    EmbeddingOutput,
    EmbeddingRequestOutput,
    RequestOutput,
    embedding_output,
    request_output,
)
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.engine.task_engine import TaskEngine, encoded_result
from fastkernels.engine.vllm_words import engine_config
from fastkernels.errors import UnsupportedError, UsageError
from fastkernels.registry import Kind, architecture_of
from fastkernels.sets import ImplementationSet

Progress = Callable[[int, int], None]
"""Called after every step with the tokens made so far and the most that can come."""

_MOST_READERS = 8
_EMBEDDING = SamplingParams(max_tokens=1)


class LLM:
    """A model ready to generate; used as vLLM's LLM.

    model: a Hugging Face checkpoint directory, the path of a config.json, or a preset's name (both with random
        weights by seed). candidates: implementation sets, by name or folder, that replace ops before the model is
        built. The other options are those of EngineConfig, or vLLM's names of them.
    core: the engine: its `info` and `stats()`. tokenizer: of the library tokenizers.
    Errors: UsageError names an option that means nothing here; UnsupportedError for a model that makes neither tokens
        nor embeddings: use Pipeline; those of the model and of the candidates.
    """

    def __init__(
        self, model: str | Path, candidates: Sequence[str | Path | ImplementationSet] = (), **options: Any
    ) -> None:
        named = tuple(str(c.path if isinstance(c, ImplementationSet) else c) for c in candidates)
        self._config = config = engine_config(str(model), named, options)
        source = find_model(config.model)
        architecture = architecture_of(source.hf_config)
        self.core: Any
        self.processor: Processor | None = None
        self._ids = itertools.count()
        if architecture.kind is Kind.AUTOREGRESSIVE:
            self.core = EngineCore(config)
            self.tokenizer = self.core.tokenizer
            if self.core.info.takes_media:
                self.processor = find_processor(config.model, self.tokenizer)
            self._processor = OutputProcessor(self.tokenizer, self.core.info.eos_token_ids)
            return
        if makes(architecture) != outputs.EMBEDDING:
            raise UnsupportedError(
                f"{source.name} makes no tokens; use Pipeline, or `fastkernels generate` with --input."
            )
        self.core = TaskEngine(config, isolates_errors=False)
        self.tokenizer = self.core.pipeline.adapter.tokenizer

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: None = None,
        priority: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> list[RequestOutput]:
        """Continue the prompts; the outputs are in their order.

        Requests without a seed draw other tokens in each call; a new LLM of the same seed repeats the calls.

        prompts: texts, lists of token ids, or {"prompt": ... or "prompt_token_ids": ..., "multi_modal_data": {"image":
            one or a list, "video": ..., "audio": ...}} where the model takes more than text.
        sampling_params: one for all, or one each. use_tqdm: a progress bar where stderr is a terminal; progress is
            called instead.
        Errors: UnsupportedError names the limit that a request exceeds, UsageError what is wrong with a prompt; then
            none is run.
        """
        self._check_tokens("generate")
        _refuse(lora_request=lora_request, priority=None if priority is None else [p for p in priority if p] or None)
        given = as_prompts(prompts)
        return self._generate(given, self._read(given), sampling_params, use_tqdm, progress)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        lora_request: None = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of a list of them, as /v1/chat/completions does.

        messages: {"role": ..., "content": a text or OpenAI's parts}. chat_template: Jinja, instead of the checkpoint's.
        The other arguments are those of `generate`, and the template's.
        Errors: as `generate`; ChatTemplateError when the template refuses the messages.
        """
        self._check_tokens("chat")
        _refuse(lora_request=lora_request, continue_final_message=continue_final_message or None)
        if chat_template_content_format != "auto":
            raise UsageError(
                f"chat_template_content_format is {chat_template_content_format!r}; it can only be 'auto': templates "
                "say themselves what they read."
            )
        found = self._config.tokenizer or self._config.model
        template = find_chat_template(found) if chat_template is None else chat_template_of(found, chat_template)
        prompts: list[PromptLike] = []
        for conversation in _conversations(messages):
            options = (self.processor, tools, add_generation_prompt, chat_template_kwargs)
            text, media = render_chat(template, conversation, *options), _media(conversation)
            prompts.append({"prompt": text, "multi_modal_data": media} if media else text)
        return self._generate(prompts, self._read(prompts, False), sampling_params, use_tqdm, None)

    def embed(
        self, prompts: PromptLike | Sequence[PromptLike], *, use_tqdm: bool = True, lora_request: None = None
    ) -> list[EmbeddingRequestOutput]:
        """As /v1/embeddings: the dense vector of a model that makes embeddings, of one that makes tokens the last
        token's hidden state; of length 1.

        Errors: as `generate`.
        """
        _refuse(lora_request=lora_request)
        given = as_prompts(prompts)
        if isinstance(self.core, TaskEngine):
            return self._embed_by_pipeline([_embedding_inputs(prompt) for prompt in given], use_tqdm)
        said = self._run(given, self._read(given), [_EMBEDDING] * len(given), use_tqdm, is_embedding=True)
        return [embedding_output(one) for one in said]

    def get_tokenizer(self) -> Any:
        """A tokenizer of transformers: `encode`, `decode`, `apply_chat_template`.

        Errors: EnvironmentProblem when that is not installed.
        """
        return transformers_tokenizer(self._config.tokenizer or self._config.model, self.tokenizer)

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` does without sampling_params; a checkpoint's generation_config.json has no say in it."""
        return SamplingParams()

    def close(self) -> None:
        """End what runs beside this process: the other ranks of a tensor-parallel engine."""
        self.core.close()

    def replacements(self) -> list[dict[str, Any]]:
        """What became of every op that a candidate replaces: set, status and number of calls."""
        return [line for line in self.core.kernels() if line["status"] != "BASELINE"]

    def _check_tokens(self, name: str) -> None:
        if isinstance(self.core, TaskEngine):
            raise UnsupportedError(
                f"{self.core.info.model} makes embeddings, no tokens: use LLM.embed, not {name}, or `fastkernels "
                "generate` with --input text=..."
            )

    def _read(self, prompts: Sequence[PromptLike], add_special_tokens: bool = True) -> Iterator[ProcessedPrompt]:
        """In their order. Pictures, videos and sounds take some ten milliseconds of a core each: several at once."""

        def read(prompt: PromptLike) -> ProcessedPrompt:
            return read_prompt(prompt, self.tokenizer, self.processor, add_special_tokens)

        if sum(isinstance(p, Mapping) and "multi_modal_data" in p for p in prompts) < 2:
            yield from map(read, prompts)
            return
        with ThreadPoolExecutor(min(_MOST_READERS, len(prompts), os.cpu_count() or 1)) as readers:
            yield from readers.map(read, prompts)

    def _generate(
        self,
        prompts: Sequence[PromptLike],
        read: Iterator[ProcessedPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
        progress: Progress | None,
    ) -> list[RequestOutput]:
        each = _one_each(sampling_params, len(prompts))
        said = self._run(prompts, read, each, use_tqdm, progress)
        words = self._processor.vocabulary
        return [request_output(one, words, params.detokenize) for one, params in zip(said, each, strict=True)]

    def _run(
        self,
        prompts: Sequence[PromptLike],
        read: Iterator[ProcessedPrompt],
        params: Sequence[SamplingParams],
        use_tqdm: bool,
        progress: Progress | None = None,
        is_embedding: bool = False,
    ) -> list[outputs.RequestOutput]:
        ids = [str(next(self._ids)) for _ in prompts]
        names: list[str] = []
        most = 0
        try:
            for request_id, prompt, one in zip(ids, read, params, strict=True):
                extras = (is_embedding, prompt.media, prompt.encoder_input)
                for request in self._processor.add(request_id, prompt.text, prompt.token_ids, one, *extras):
                    most += self.core.add(request)
                    names.append(request.request_id)
            with _bar(len(ids), use_tqdm and progress is None) as tell:
                return self._finished(ids, most, tell, progress)
        finally:
            for request_id in ids:
                self._processor.abort(request_id)
            self.core.abort(names)
            while self.core.has_unfinished:
                self.core.step()

    def _finished(
        self, ids: Sequence[str], most: int, tell: Callable[[int], None], progress: Progress | None
    ) -> list[outputs.RequestOutput]:
        """Steps until none is left. tell: hears how many requests have ended."""
        latest: dict[str, outputs.RequestOutput] = {}
        num_made = 0
        while self.core.has_unfinished:
            news = self.core.step()
            said, ended = self._processor.process(news, only_finished=True)
            latest.update((output.request_id, output) for output in said)
            if ended:
                self.core.abort(ended)
            if said:
                tell(len(latest))
            if progress is not None:
                num_made += sum(len(output.token_ids) for output in news)
                progress(num_made, most)
        return [latest[request_id] for request_id in ids]

    def _embed_by_pipeline(self, requests: Sequence[Mapping[str, Any]], use_tqdm: bool) -> list[EmbeddingRequestOutput]:
        with _bar(len(requests), use_tqdm) as tell:
            found = self.core.pipeline.run(requests, lambda num_ended, _: tell(num_ended))
        return [
            EmbeddingRequestOutput(
                str(next(self._ids)), EmbeddingOutput(encoded_result(one).vector), list(one.token_ids)
            )
            for one in found
        ]


def _one_each(
    sampling_params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> list[SamplingParams]:
    if isinstance(sampling_params, Sequence):
        each = list(sampling_params)
    else:
        each = [SamplingParams() if sampling_params is None else sampling_params] * num_prompts
    for one in each:
        if not isinstance(one, SamplingParams):
            raise UsageError(f"sampling_params holds {one!r:.80}; it is a SamplingParams, or a list of one each.")
    if len(each) != num_prompts:
        raise UsageError(f"{num_prompts} prompts came with {len(each)} SamplingParams; give one, or one each.")
    return each


def _conversations(messages: Sequence[Any]) -> list[Sequence[Mapping[str, Any]]]:
    """One conversation or several as a list. Errors: UsageError for what is neither."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UsageError(f"messages is {messages!r:.80}; it is a list of at least one message, or of such lists.")
    found = [messages] if isinstance(messages[0], Mapping) else list(messages)
    for one in found:
        if not isinstance(one, Sequence) or isinstance(one, str) or not one:
            raise UsageError(f"messages holds {one!r:.80}; a conversation is a list of at least one message.")
    return found


def _media(conversation: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    data: dict[str, list[Any]] = {}
    for message in conversation:
        for modality, source in media_of(message):
            data.setdefault(modality, []).append(source)
    return data


def _embedding_inputs(prompt: PromptLike) -> dict[str, Any]:
    content, data = split_prompt(prompt)
    if data:
        raise UnsupportedError(f"The model embeds text only; multi_modal_data holds {', '.join(data)}.")
    return {"text": content} if isinstance(content, str) else {"input_ids": list(content)}


def _refuse(**words: object) -> None:
    """Errors: UnsupportedError names a word of vLLM's that is given and cannot be heeded."""
    for name, value in words.items():
        if value is not None:
            raise UnsupportedError(f"{name} is {value!r:.80}; this engine does not have it. Leave it out.")


@contextmanager
def _bar(num_requests: int, is_wanted: bool) -> Iterator[Callable[[int], None]]:
    """A bar of the requests that have ended, where stderr is a terminal."""
    console = Console(stderr=True)
    if not is_wanted or not console.is_terminal:
        yield lambda num_ended: None
        return
    columns = (TextColumn("Processed prompts"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=num_requests)
        yield lambda num_ended: bar.update(task, completed=num_ended)
