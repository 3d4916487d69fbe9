"""POST /v1/audio/transcriptions: a recording of any length, window by window, as text."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from fastkernels.engine.client import AsyncEngine
from fastkernels.engine.outputs import CompletionOutput
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import UsageError
from fastkernels.server.errors import ApiError, json_response
from fastkernels.server.generation import Job, Prompt, collect, request_id_of
from fastkernels.server.multipart import Part, read_form
from fastkernels.server.service import Service
from fastkernels.server.stream import unless_gone

_FORMATS = ("json", "text", "verbose_json")
_FIELDS = ("model", "language", "prompt", "response_format")
SCHEMA: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {"type": "string", "format": "binary"},
                    **{name: {"type": "string"} for name in ("model", "language", "prompt")},
                    "response_format": {"type": "string", "enum": list(_FORMATS)},
                    "temperature": {"type": "number", "minimum": 0, "maximum": 1},
                },
            }
        }
    },
}
"""Of the body, as OpenAPI has it."""

_MANY = ("timestamp_granularities", "include")


@dataclass(frozen=True)
class TranscriptionForm:
    """The fields of a request, as OpenAI's API names them."""

    file: bytes
    model: str | None = None
    language: str | None = None
    prompt: str | None = None
    response_format: str = "json"
    temperature: float = 0.0

    @classmethod
    def of(cls, form: Mapping[str, Sequence[Part]]) -> TranscriptionForm:
        """Errors: ApiError names the field that is missing, off or not known here."""
        parts = {name.removesuffix("[]"): many for name, many in form.items()}
        for name, many in parts.items():
            if len(many) > 1 and name not in _MANY:
                raise ApiError(400, f"{name} comes {len(many)} times in the form.", name)
        if "file" not in parts or parts["file"][0].filename is None:
            raise ApiError(400, "file is missing: send the recording as a file of the form.", "file")
        texts = {name: parts[name][0].text(name) for name in _FIELDS if name in parts}
        given = {name: text for name, text in texts.items() if text}
        if given.get("response_format", "json") not in _FORMATS:
            shown = given["response_format"][:60]
            raise ApiError(400, f"response_format is {shown!r}; it is {', '.join(_FORMATS)}.", "response_format")
        for part in parts.get("timestamp_granularities", ()):
            if part.content != b"segment":
                raise ApiError(
                    400, "timestamp_granularities may hold 'segment': words are not timed.", "timestamp_granularities"
                )
        if parts.get("stream", [Part(b"")])[0].content.lower() in (b"true", b"1"):
            raise ApiError(400, "stream is true; a transcription comes at once.", "stream")
        return cls(parts["file"][0].content, **given, temperature=_temperature(parts))


def _temperature(parts: Mapping[str, Sequence[Part]]) -> float:
    if "temperature" not in parts:
        return 0.0
    text = parts["temperature"][0].text("temperature")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ApiError(400, f"temperature is {text[:60]!r}; it is a number in [0, 1].", "temperature")
    return value


async def respond(request: Request, service: Service) -> Response:
    """All windows run together; all are dropped when the client leaves or one fails."""
    form = TranscriptionForm.of(read_form(request.headers.get("content-type", ""), await request.body()))
    engine = service.engine_for(form.model)
    processor: Any = service.processor
    if processor is None or "audio" not in processor.modalities:
        raise ApiError(400, f"{service.model_names[0]} takes no audio.", code="wrong_kind_of_model")
    try:
        tokens = processor.prompt_tokens(form.language, previous=form.prompt)
    except UsageError as error:
        raise ApiError(400, str(error), "prompt" if "came before" in str(error) else "language") from error
    try:
        hearing = asyncio.to_thread(_hear, processor, form.file, engine)
        windows, features = await unless_gone(request.receive, hearing)
    except UsageError as error:
        raise ApiError(400, f"file: {error}", "file") from error
    wanted = SamplingParams(
        temperature=form.temperature,
        max_tokens=service.info.max_model_len,
        logprobs=0 if form.response_format == "verbose_json" else None,
    )
    params = processor.sampling_params(wanted, len(tokens))
    prompts = [Prompt(tokens, encoder_input=one) for one in features]
    job = Job(request_id_of(request, "trsc"), form.model or service.model_names[0], prompts, params)
    outputs = await collect(request, engine, job)
    answers = [output.outputs[0] for output in outputs]
    language = processor.language_code(form.language)
    return _answer(form, processor.transcription(windows, [answer.token_ids for answer in answers], language), answers)


def _hear(processor: Any, content: bytes, engine: AsyncEngine) -> tuple[list[Any], list[Any]]:
    """The windows of a recording and their spectrograms. Errors: UsageError; ApiError for too many windows."""
    windows = processor.windows(content)
    most = engine.config.max_num_waiting
    if len(windows) > most:
        longest = most * processor.window_seconds
        raise ApiError(400, f"file lasts {len(windows)} windows; at most {most} may wait, {longest:g} s.", "file")
    return windows, [processor.features(window) for window in windows]


def _answer(form: TranscriptionForm, found: Any, answers: Sequence[CompletionOutput]) -> Response:
    if form.response_format == "text":
        return PlainTextResponse(found.text + "\n")
    if form.response_format == "json":
        return json_response({"text": found.text})
    segments = [
        {
            "id": i,
            "seek": round(start * 100),
            "start": start,
            "end": end,
            "text": text,
            "tokens": list(tokens),
            "temperature": form.temperature,
            "avg_logprob": _mean([one.logprobs[0] for one in answer.logprobs or ()]),
            "compression_ratio": len(text.encode()) / len(zlib.compress(text.encode())),
            "no_speech_prob": 0.0,  # not measured; OpenAI's form has it always
        }
        for i, ((start, end, text, tokens), answer) in enumerate(zip(found.segments, answers, strict=True))
    ]
    return json_response(
        {
            "task": "transcribe",
            "language": found.language,
            "duration": found.duration,
            "text": found.text,
            "segments": segments,
        }
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
