"""Requests of a model that takes pictures or sounds: drawn tokens beside the example media of its processor."""

from __future__ import annotations

import io
import re
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from PIL import Image

from fastkernels.engine.model_source import build_config, find_model, find_tokenizer
from fastkernels.engine.multimodal import Processor, find_processor
from fastkernels.workloads import TrafficRequest

_MOST_ROOM = 256
_FRAME_MILLISECONDS = 100


@dataclass(frozen=True)
class MediaFile:
    """kind: such as image/png."""

    modality: str
    kind: str
    content: bytes


@dataclass(frozen=True)
class MediaRequest:
    """What goes over HTTP in the place of token ids: words, as many as the prompt has tokens, and files beside them."""

    words: str
    files: tuple[MediaFile, ...]
    output_len: int
    arrival_s: float = 0.0


class ExampleMedia:
    """Of a model by name, whose processor is built.

    placeholders: token ids that stand for media; no drawn prompt holds one, and no answer may that is to be read again
    as a prompt. room: tokens that media add to a prompt, at most.
    """

    def __init__(self, model: str) -> None:
        source = find_model(model)
        config = build_config(source)
        self._tokenizer = find_tokenizer(source)
        processor = find_processor(model, self._tokenizer)
        assert processor is not None, model
        self.processor: Processor = processor
        named = {value for name, value in vars(config).items() if name.endswith("_token_id") and isinstance(value, int)}
        self.placeholders = frozenset(named - set(config.eos_token_ids))
        self.room = min(_MOST_ROOM, config.max_position_embeddings // 4)

    def beside(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Mapping[str, Any]]:
        """LLM.generate's form with media, by seed."""
        return self.processor.example_prompts(prompts, seed)

    def files_beside(self, requests: Sequence[TrafficRequest], seed: int) -> list[MediaRequest]:
        """The same media as files, beside words by the drawn tokens: equal tokens are equal words."""
        made = []
        for request, prompt in zip(requests, self.beside([r.prompt_token_ids for r in requests], seed), strict=True):
            words = "".join(self._words[token % len(self._words)] for token in request.prompt_token_ids)
            data = prompt.get("multi_modal_data", {})
            files = [_file(modality, one, self.processor) for modality in data for one in _as_list(data[modality])]
            made.append(MediaRequest(words, tuple(files), request.output_len, request.arrival_s))
        return made

    @cached_property
    def _words(self) -> list[str]:
        """Each of one token, which stays one behind another: a blank and letters."""
        texts = (self._tokenizer.decode([token]) for token in range(self._tokenizer.get_vocab_size()))
        found = [f" {text.strip()}" for text in texts if re.fullmatch(r" ?[A-Za-z]+", text)]
        return [word for word in found if len(self._tokenizer.encode(word, add_special_tokens=False).ids) == 1] or [
            " a"
        ]


@lru_cache(maxsize=4)
def example_media(model: str) -> ExampleMedia:
    """Of a model that makes tokens and whose architecture names a processor."""
    return ExampleMedia(model)


def _as_list(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _file(modality: str, given: np.ndarray, processor: Any) -> MediaFile:
    """given: a picture [height, width, 3], a video [frames, height, width, 3], uint8; sound [samples] in [-1, 1]."""
    out = io.BytesIO()
    if modality == "audio":
        with wave.open(out, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(processor.sampling_rate)
            file.writeframes((given.clip(-1, 1) * 32767).astype("<i2").tobytes())
        return MediaFile(modality, "audio/wav", out.getvalue())
    frames = [Image.fromarray(frame) for frame in (given if modality == "video" else given[None])]
    if modality == "video":
        frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=_FRAME_MILLISECONDS)
        return MediaFile(modality, "image/gif", out.getvalue())
    frames[0].save(out, "PNG")
    return MediaFile(modality, "image/png", out.getvalue())
