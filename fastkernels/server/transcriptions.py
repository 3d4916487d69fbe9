"""POST /v1/audio/transcriptions: a recording of any length, window by window, as text."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from fastkernels.engine.client import AsyncEngine
from fastkernels.engine.outputs import CompletionOutput
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import UsageError
from fastkernels.server.errors import ApiError, json_response
from fastkernels.server.generation import Job, Prompt, collect, request_id_of
from fastkernels.server.service import Service
from fastkernels.server.stream import unless_gone
from fastkernels.server.transcription_form import TranscriptionForm


async def respond(request: Request, service: Service) -> Response:
    """All windows run together; all are dropped when the client leaves or one fails."""
    form = TranscriptionForm.read(request.headers.get("content-type", ""), await request.body())
    body = form.body
    engine = service.engine_for(body.model, takes="audio")
    processor: Any = service.processor
    try:
        tokens = processor.prompt_tokens(body.language, previous=body.prompt)
    except UsageError as error:
        raise ApiError(400, str(error), "prompt" if "came before" in str(error) else "language") from error
    try:
        windows, features = await unless_gone(request.receive, _heard(service, form, processor, engine))
    except UsageError as error:
        raise ApiError(400, f"{form.source_field}: {error}", form.source_field) from error
    longest = service.info.max_model_len
    wanted = SamplingParams(
        temperature=form.temperature,
        max_tokens=min(body.max_completion_tokens or longest, longest),
        logprobs=0 if form.response_format == "verbose_json" else None,
    )
    params = processor.sampling_params(wanted, len(tokens))
    prompts = [Prompt(tokens, encoder_input=one) for one in features]
    job = Job(request_id_of(request, "trsc"), body.model or service.model_names[0], prompts, params)
    outputs = await collect(request, engine, job)
    answers = [output.outputs[0] for output in outputs]
    language = processor.language_code(body.language)
    return _answer(form, processor.transcription(windows, [answer.token_ids for answer in answers], language), answers)


async def _heard(
    service: Service, form: TranscriptionForm, processor: Any, engine: AsyncEngine
) -> tuple[list[Any], list[Any]]:
    """Errors: UsageError when the recording cannot be fetched or read; ApiError."""
    if form.file is not None:
        return await asyncio.to_thread(_hear, processor, form.file, form.source_field, engine)
    from fastkernels.server import media

    url = form.body.url or ""
    media.check_url(service, url, "url")
    async with media.sources(service, [("audio", url)]) as (source,):
        return await asyncio.to_thread(_hear, processor, source, form.source_field, engine)


def _hear(processor: Any, source: bytes | str, field: str, engine: AsyncEngine) -> tuple[list[Any], list[Any]]:
    """The windows of a recording and their spectrograms. Errors: UsageError; ApiError for too many windows."""
    windows = processor.windows(source)
    most = engine.config.max_num_waiting
    if len(windows) > most:
        longest = most * processor.window_seconds
        message = f"{field} lasts {len(windows)} windows; at most {most} may wait, {longest:g} s."
        raise ApiError(400, message, field)
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
