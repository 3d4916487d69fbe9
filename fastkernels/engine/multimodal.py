"""Pictures, videos and sounds among a prompt's tokens: what a processor makes of them, and which step encodes which.

A model that takes them has `embed_multimodal(modality, items)` and `embed_input_ids(ids, embeddings, places)`, as
vLLM's SupportsMultiModal; its architecture names the processor that makes items of what a user gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from fastkernels.engine.model_source import build_config, find_model
from fastkernels.engine.text import check_text
from fastkernels.errors import UnsupportedError, UsageError
from fastkernels.registry import architecture_of

if TYPE_CHECKING:
    from fastkernels.engine.request import Request
    from fastkernels.engine.scheduler import ScheduledRow

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MediaItem:
    """One picture, video or sound of a prompt, ready for the model's encoder.

    tensors: by name, as embed_multimodal takes them. key: digest of the content; equal keys are encoded once.
    places: [num_embeddings], ascending: the prompt's tokens that its embeddings take the place of.
    """

    modality: str
    tensors: Mapping[str, NDArray[Any]]
    key: bytes
    places: Ints


@dataclass(frozen=True, eq=False)
class Media:
    """All of a prompt's. positions: [num_axes, prompt_len] where a token's position is not its index; the tokens that
    are made after the prompt lie at their index plus position_delta on every axis."""

    items: tuple[MediaItem, ...] = ()
    positions: Ints | None = None
    position_delta: int = 0

    def page_keys(self, start: int, end: int) -> bytes:
        """What tells the tokens [start, end) from others of the same ids: whose they are, and from where on."""
        found = []
        for item in self.items:
            first, last = np.searchsorted(item.places, (start, end))
            if first < last:
                found.append(item.key + int(item.places[first] - start).to_bytes(8, "little"))
        return b"".join(found)


@dataclass(frozen=True)
class ProcessedPrompt:
    """A prompt as the engine takes it. text: None when it came as token ids. encoder_input: what a model with an
    encoder of its own reads beside it."""

    token_ids: tuple[int, ...]
    text: str | None = None
    media: Media | None = None
    encoder_input: NDArray[Any] | None = None


class Processor(Protocol):
    """Of an architecture, built from (config, tokenizer, checkpoint or None); it needs no model.

    modalities: what multi_modal_data may name. needs_media: no prompt goes without.
    """

    modalities: tuple[str, ...]
    needs_media: bool

    def __call__(
        self, prompt: str | Sequence[int], data: Mapping[str, Any], add_special_tokens: bool = True
    ) -> ProcessedPrompt:
        """Errors: UsageError for what cannot be read, or when placeholders and data differ in number."""

    def placeholder(self, modality: str) -> str:
        """The text that stands for one item in a prompt."""

    def example_prompts(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Mapping[str, Any]]:
        """The prompts with pictures or videos among some of them, for captures and measurements."""


PromptLike = str | Sequence[int] | Mapping[str, Any]
"""A text, token ids, or vLLM's form: "prompt" or "prompt_token_ids", and "multi_modal_data" by modality."""

_FIELDS = ("prompt", "prompt_token_ids", "multi_modal_data")
_FORMS = "a text, a list of token ids, or a map with prompt or prompt_token_ids"


def as_prompts(prompts: PromptLike | Sequence[PromptLike]) -> list[PromptLike]:
    """One prompt or several as a list; a list of token ids is one. Errors: UsageError for what is neither."""
    given: Any = _listed(prompts)
    if isinstance(given, str | Mapping) or _is_token_ids(given):
        return [given]
    if isinstance(given, Sequence) and not isinstance(given, bytes):
        return list(given)
    raise UsageError(f"prompts is of type {type(prompts).__name__}; it is a prompt or a list of them: {_FORMS}.")


def split_prompt(prompt: PromptLike) -> tuple[str | Sequence[int], Mapping[str, Any]]:
    """A text or token ids, and the media. Errors: UsageError for another form, and for a text that is not Unicode."""
    data: Mapping[str, Any] = {}
    content: Any = prompt
    if isinstance(prompt, Mapping):
        unknown = [name for name in prompt if name not in _FIELDS]
        given = [prompt[name] for name in _FIELDS[:2] if prompt.get(name) is not None]
        if unknown or len(given) != 1:
            raise UsageError(
                f"A prompt has prompt or prompt_token_ids, and may have multi_modal_data; got {', '.join(prompt)}."
            )
        data, content = prompt.get("multi_modal_data") or {}, given[0]
    content = _listed(content)
    if isinstance(content, str):
        check_text(content, "prompt")
    elif not _is_token_ids(content) and not (isinstance(content, list | tuple) and not content):
        raise UsageError(f"A prompt is of type {type(content).__name__}, {content!r:.80}; it is {_FORMS}.")
    return content, data


def read_prompt(
    prompt: PromptLike, tokenizer: Tokenizer, processor: Processor | None, add_special_tokens: bool = True
) -> ProcessedPrompt:
    """Errors: those of `split_prompt`; UnsupportedError for media that the model does not take."""
    content, data = split_prompt(prompt)
    if processor is not None:
        return processor(content, data, add_special_tokens)
    if data:
        raise UnsupportedError(f"The model takes text only; multi_modal_data holds {', '.join(data)}.")
    if isinstance(content, str):
        return ProcessedPrompt(tuple(tokenizer.encode(content, add_special_tokens=add_special_tokens).ids), content)
    return ProcessedPrompt(tuple(int(token) for token in content))


def _is_token_ids(value: Any) -> bool:
    """Whole numbers, at least one."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        return False
    kinds = set(map(type, value))
    return bool(kinds) and all(issubclass(kind, int | np.integer) and kind is not bool for kind in kinds)


def _listed(value: Any) -> Any:
    """An array or a tensor as lists, all else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def find_processor(model: str, tokenizer: Tokenizer) -> Processor | None:
    """Of the architecture of a model that makes tokens; None when it takes text alone."""
    source = find_model(model)
    place = architecture_of(source.hf_config).pipeline
    if not place:
        return None
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)(build_config(source), tokenizer, source.checkpoint)


@dataclass(frozen=True)
class EmbeddingPart:
    """Embeddings [first, first + len(index)) of an item, for the tokens at `index` of a step's batch."""

    key: bytes
    first: int
    index: Ints


@dataclass(frozen=True)
class StepMedia:
    """encode: (key, modality, tensors) of the items that this step encodes. freed: those that no later step needs."""

    encode: tuple[tuple[bytes, str, Mapping[str, NDArray[Any]]], ...] = ()
    parts: tuple[EmbeddingPart, ...] = ()
    freed: tuple[bytes, ...] = ()


class MediaPlanner:
    """Which items a step encodes, places and lets go: an item is encoded once, when its first token is scheduled, and
    kept until the last one of every request that has begun it is computed."""

    def __init__(self) -> None:
        self._begun: dict[Request, set[bytes]] = {}
        self._holders: dict[bytes, int] = {}

    def plan(self, rows: Sequence[ScheduledRow]) -> StepMedia | None:
        """rows: in batch order. None when the step has nothing to do with media."""
        freed = self._let_go(request for request in list(self._begun) if request.row < 0)
        encode: dict[bytes, MediaItem] = {}
        parts: list[EmbeddingPart] = []
        ended: list[tuple[Request, bytes]] = []
        offset = 0
        for request, _, start, num_tokens, _ in rows:
            for item in request.media.items if request.media is not None and start < request.prompt_len else ():
                first, last = np.searchsorted(item.places, (start, start + num_tokens))
                if first < last:
                    self._begin(request, item, encode, freed)
                    parts.append(EmbeddingPart(item.key, int(first), item.places[first:last] - start + offset))
                    if last == len(item.places):
                        ended.append((request, item.key))
            offset += num_tokens
        for request, key in ended:
            if not any(i.key == key and i.places[-1] >= request.num_computed for i in _items(request)):
                freed += self._end(request, key)
        if not parts and not freed:
            return None
        return StepMedia(tuple((k, i.modality, i.tensors) for k, i in encode.items()), tuple(parts), tuple(freed))

    @property
    def num_held(self) -> int:
        """Items that runners keep for a later step."""
        return len(self._holders)

    def _begin(self, request: Request, item: MediaItem, encode: dict[bytes, MediaItem], freed: list[bytes]) -> None:
        begun = self._begun.setdefault(request, set())
        if item.key in begun:
            return
        begun.add(item.key)
        if item.key in freed:  # let go a moment ago, and wanted again
            freed.remove(item.key)
        elif item.key not in self._holders:
            encode[item.key] = item
        self._holders[item.key] = self._holders.get(item.key, 0) + 1

    def _end(self, request: Request, key: bytes) -> list[bytes]:
        begun = self._begun.get(request, set())
        if key not in begun:
            return []
        begun.remove(key)
        if not begun:
            del self._begun[request]
        self._holders[key] -= 1
        if self._holders[key]:
            return []
        del self._holders[key]
        return [key]

    def _let_go(self, requests: Iterable[Request]) -> list[bytes]:
        """Those that left their rows before their items were through."""
        return [key for request in requests for held in list(self._begun[request]) for key in self._end(request, held)]


def _items(request: Request) -> tuple[MediaItem, ...]:
    return request.media.items if request.media is not None else ()


def rope_positions(rows: Sequence[ScheduledRow], positions: Ints) -> Ints | None:
    """The positions of a step's tokens where some request's are not its indices: [num_tokens] when all axes agree,
    else [num_axes, num_tokens]. None: they are `positions`."""
    placed = [s.request.media for s in rows if s.request.media is not None and s.request.media.positions is not None]
    if not placed:
        return None
    is_flat = all(s.request.media is None or s.start >= s.request.prompt_len for s in rows)
    first = placed[0].positions
    assert first is not None
    found = positions.copy() if is_flat else np.tile(positions, (len(first), 1))
    offset = 0
    for request, _, start, num_tokens, _ in rows:
        media = request.media
        if media is not None and media.positions is not None:
            known = max(0, min(start + num_tokens, media.positions.shape[1]) - start)
            if known:
                found[:, offset : offset + known] = media.positions[:, start : start + known]
            found[..., offset + known : offset + num_tokens] += media.position_delta
        offset += num_tokens
    return found
