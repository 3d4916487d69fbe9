"""Whisper: sound as log-mel spectrograms of whole windows, the decoder's prompt, and the text of a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from fastkernels.engine.multimodal import ProcessedPrompt
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import EnvironmentProblem, UnsupportedError, UsageError
from fastkernels.pipelines.media import load_audio, resample
from fastkernels.pipelines.options import read_options
from fastkernels.tasks.configs.whisper import WhisperConfig
from fastkernels.workloads import SPEECH_RATE, speech

_HOP, _RATE = 160, 16000
_TASKS = ("transcribe", "translate")
_BLANK = " "


@dataclass(frozen=True)
class Transcription:
    """text: of the whole recording. segments: (first second, last second, text, tokens) of each window."""

    text: str
    language: str | None
    duration: float
    segments: tuple[tuple[float, float, str, tuple[int, ...]], ...]


class WhisperProcessor:
    """Of a checkpoint directory with preprocessor_config.json and generation_config.json, where it has them."""

    modalities = ("audio",)
    needs_media = True

    def __init__(self, config: WhisperConfig, tokenizer: Tokenizer, checkpoint: Path | None = None) -> None:
        self.config, self.tokenizer = config, tokenizer
        self._features = read_options(checkpoint, "preprocessor_config.json")
        self._generation = read_options(checkpoint, "config.json") | read_options(checkpoint, "generation_config.json")
        self.sampling_rate = int(self._features.get("sampling_rate", _RATE))
        self.hop_length = int(self._features.get("hop_length", _HOP))
        self.window_len = config.num_frames * self.hop_length

    @property
    def window_seconds(self) -> float:
        return self.window_len / self.sampling_rate

    @property
    def is_english_only(self) -> bool:
        """Its tokenizer has the marks of languages and tasks all the same; it was trained without them."""
        return self._generation.get("is_multilingual") is False

    @cached_property
    def languages(self) -> Mapping[str, int]:
        """Those that the tokenizer has a token for, by code: {"en": 50259, ...}; an English-only model has none."""
        if self.is_english_only:
            return {}
        named = self._generation.get("lang_to_id")
        if named:
            return {name.strip("<|>"): int(token) for name, token in named.items()}
        tokens = {f"<|{code}|>": code for code in _language_names()}
        return {code: token for mark, code in tokens.items() if (token := self.tokenizer.token_to_id(mark)) is not None}

    def placeholder(self, modality: str) -> str:
        """Nothing stands for a recording in a prompt: it is read beside it. Errors: UnsupportedError for others."""
        if modality not in self.modalities:
            raise UnsupportedError(f"The model takes audio, not {modality}.")
        return ""

    def __call__(
        self, prompt: str | Sequence[int], data: Mapping[str, Any], add_special_tokens: bool = True
    ) -> ProcessedPrompt:
        """data: "audio", anything that load_audio takes, of one window at most. An empty prompt is prompt_tokens()'s.

        Errors: UsageError when it cannot be read, is longer than a window, or is not one.
        """
        for modality in data:
            self.placeholder(modality)
        given = data.get("audio")
        sounds = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
        if len(sounds) != 1:
            raise UsageError(f"A prompt goes with one recording in multi_modal_data['audio'], got {len(sounds)}.")
        samples = load_audio(sounds[0], self.sampling_rate)
        if len(samples) > self.window_len:
            raise UsageError(
                f"The audio lasts {len(samples) / self.sampling_rate:.1f} s; the model hears {self.window_seconds:g} "
                "s at once. Cut it, or give it to POST /v1/audio/transcriptions or `generate --audio`, which do."
            )
        tokens = self._encode(prompt) if isinstance(prompt, str) else [int(t) for t in prompt]
        text = prompt if isinstance(prompt, str) else None
        return ProcessedPrompt(tuple(tokens or self.prompt_tokens()), text, encoder_input=self.features(samples))

    def features(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """[num_mel_bins, num_frames]: the spectrogram of at most a window, the rest silence.

        Errors: UsageError when there is no sample.
        """
        if not len(samples):
            raise UsageError("The audio has no sample.")
        done = self._extractor(samples, sampling_rate=self.sampling_rate, return_tensors="np")
        return np.ascontiguousarray(done["input_features"][0], dtype=np.float32)

    def windows(self, source: Any) -> list[NDArray[np.float32]]:
        """A recording of any length in windows, each but the last whole. Errors: UsageError when it cannot be read."""
        samples = load_audio(source, self.sampling_rate)
        if not len(samples):
            raise UsageError("The audio has no sample.")
        return [samples[start : start + self.window_len] for start in range(0, len(samples), self.window_len)]

    def prompt_tokens(
        self, language: str | None = None, task: str = "transcribe", previous: str | None = None
    ) -> list[int]:
        """<|startoftranscript|><|language|><|task|><|notimestamps|>, as far as the tokenizer has them; without language
        and task for an English-only model.

        previous: a text that came before; its end stands ahead, behind <|startofprev|>.
        Errors: UsageError for a language or a task that the model does not know, or a text when it knows no such token.
        """
        if task not in _TASKS:
            raise UsageError(f"The task is {' or '.join(_TASKS)}, not {task!r}.")
        if self.is_english_only and task != "transcribe":
            raise UsageError("The model knows English only; it transcribes and does not translate.")
        tokens = [*self._previous(previous), self.config.decoder_start_token_id]
        code = self.language_code(language)
        if self.languages:
            tokens.append(self.languages[code])
        marks = [f"<|{task}|>"] if self.languages else []
        found = [self.tokenizer.token_to_id(mark) for mark in (*marks, "<|notimestamps|>")]
        return tokens + [token for token in found if token is not None]

    def _previous(self, text: str | None) -> list[int]:
        if not text or not text.strip():
            return []
        mark = self.tokenizer.token_to_id("<|startofprev|>")
        if mark is None:
            raise UsageError("The model takes no text that came before: its tokenizer has no <|startofprev|>.")
        most = self.config.max_target_positions // 2 - 1
        return [mark, *self._encode(f" {text.strip()}")[-most:]]

    def language_code(self, language: str | None) -> str:
        """Of a code or an English name; English when none is given. Errors: UsageError when there is no such."""
        wanted = (language or "en").strip().lower()
        code = {name: code for code, name in _language_names().items()}.get(wanted, wanted)
        if self.is_english_only and code != "en":
            raise UsageError(f"The model knows English only, not {language!r}; leave the language out.")
        if self.languages and code not in self.languages:
            raise UsageError(f"The model knows no language {language!r}; it knows {', '.join(sorted(self.languages))}.")
        return code

    def sampling_params(self, params: SamplingParams, num_prompt: int) -> SamplingParams:
        """With what a transcription never says, and no longer than the model's positions allow."""
        suppressed = self._generation.get("suppress_tokens") or ()
        first = self._generation.get("begin_suppress_tokens")
        if first is None:
            blank = self.tokenizer.encode(_BLANK, add_special_tokens=False).ids
            first = [*blank, *self.config.eos_token_ids] if len(blank) == 1 else self.config.eos_token_ids
        vocab_size, room = self.config.vocab_size, self.config.max_target_positions - num_prompt
        return replace(
            params,
            max_tokens=max(1, room if params.max_tokens is None else min(params.max_tokens, room)),
            suppress_tokens=tuple(t for t in suppressed if 0 <= t < vocab_size),
            begin_suppress_tokens=tuple(t for t in first if 0 <= t < vocab_size),
        )

    def transcription(
        self, windows: Sequence[NDArray[np.float32]], answers: Sequence[Sequence[int]], language: str | None
    ) -> Transcription:
        """The text of a recording from its windows' tokens."""
        segments = []
        start = 0
        for window, tokens in zip(windows, answers, strict=True):
            end = start + len(window)
            text = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
            segments.append((start / self.sampling_rate, end / self.sampling_rate, text, tuple(tokens)))
            start = end
        text = "".join(segment[2] for segment in segments).strip()
        return Transcription(text, language, start / self.sampling_rate, tuple(segments))

    def prompts(self, windows: Sequence[NDArray[np.float32]], tokens: Sequence[int]) -> list[dict[str, Any]]:
        """What LLM.generate takes for a recording in windows."""
        return [{"prompt_token_ids": tokens, "multi_modal_data": {"audio": window}} for window in windows]

    def example_prompts(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Mapping[str, Any]]:
        """The prompts beside unlike lengths of the shipped recording, from places and as loud as drawn, with noise."""
        random = np.random.default_rng(seed)
        spoken = resample(speech(), SPEECH_RATE, self.sampling_rate)
        made: list[Mapping[str, Any]] = []
        for tokens in prompts:
            length = int(random.integers(self.window_len // 10, self.window_len + 1))
            heard = np.resize(np.roll(spoken, int(random.integers(len(spoken)))), length) * random.uniform(0.3, 1)
            sound = (heard + 0.01 * random.standard_normal(length)).clip(-1, 1).astype(np.float32)
            made.append({"prompt_token_ids": list(tokens), "multi_modal_data": {"audio": sound}})
        return made

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    @cached_property
    def _extractor(self) -> Any:
        try:
            from transformers import WhisperFeatureExtractor
        except ImportError as error:
            raise EnvironmentProblem("To hear, install transformers: pip install 'fastkernels[server]'.") from error
        extractor = WhisperFeatureExtractor(
            feature_size=self.config.num_mel_bins,
            sampling_rate=self.sampling_rate,
            hop_length=self.hop_length,
            n_fft=int(self._features.get("n_fft", 400)),
            dither=float(self._features.get("dither", 0.0)),
        )
        extractor.n_samples, extractor.nb_max_frames = self.window_len, self.config.num_frames
        return extractor


def _language_names() -> Mapping[str, str]:
    """English names by code, as the published tokenizer's."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return LANGUAGES
