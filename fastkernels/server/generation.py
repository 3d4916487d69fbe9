"""Running one HTTP request's generations: all at once, or as events."""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from fastkernels.engine.client import AsyncEngine
from fastkernels.engine.multimodal import Media
from fastkernels.engine.output_processor import OutputKind
from fastkernels.engine.outputs import RequestOutput
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.server.errors import ApiError, json_response
from fastkernels.server.record import Record
from fastkernels.server.stream import EventStream, Started, merge, unless_gone

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Prompt:
    token_ids: Sequence[int]
    text: str | None = None
    media: Media | None = None
    encoder_input: NDArray[Any] | None = None


@dataclass
class Job:
    """What a request asks for: n answers to each prompt. is_scoring: the token that is made is not told."""

    request_id: str
    model: str
    prompts: list[Prompt]
    params: SamplingParams
    is_scoring: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(prompt.token_ids) for prompt in self.prompts)


class Shape(Protocol):
    """How a route tells answers."""

    def response(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """All of them, finished."""

    def chunks(self, prompt_index: int, output: RequestOutput) -> list[dict[str, Any]]:
        """What is new."""

    def last_chunk(self) -> dict[str, Any]:
        """No answer; the usage belongs to it."""


def request_id_of(request: Request, prefix: str) -> str:
    """From X-Request-Id when it is fit to be one, so that /abort can name it before the answer comes."""
    given = request.headers.get("x-request-id", "")
    return f"{prefix}-{given if _ID.fullmatch(given) else uuid.uuid4().hex}"


def usage(num_prompt_tokens: int, num_output_tokens: int, num_cached_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_output_tokens,
        "total_tokens": num_prompt_tokens + num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": num_cached_tokens},
    }


def _streams(
    engine: AsyncEngine, job: Job, kind: OutputKind, is_embedding: bool = False
) -> list[AsyncGenerator[RequestOutput]]:
    limit = engine.config.max_num_waiting
    if len(job.prompts) * job.params.n > limit:
        message = f"{len(job.prompts)} prompts of n = {job.params.n} were sent; at most {limit} answers may wait."
        raise ApiError(400, message, "prompt")
    return [
        engine.generate(
            prompt.token_ids,
            job.params,
            job.request_id,
            kind,
            prompt.text,
            is_embedding,
            prompt.media,
            prompt.encoder_input,
        )
        for prompt in job.prompts
    ]


async def collect(request: Request, engine: AsyncEngine, job: Job, is_embedding: bool = False) -> list[RequestOutput]:
    """Every prompt's answers; all are dropped when the client leaves or one fails."""
    record: Record = request.state.record
    record.begin(job.request_id, job.num_prompt_tokens)
    outputs: dict[int, RequestOutput] = {}

    async def run() -> None:
        async with contextlib.aclosing(merge(_streams(engine, job, OutputKind.FINAL_ONLY, is_embedding))) as merged:
            async for index, output in merged:
                outputs[index] = output
                record.add(output)

    await unless_gone(request.receive, run())
    return [outputs[index] for index in range(len(job.prompts))]


async def respond(
    request: Request, engine: AsyncEngine, job: Job, shape: Shape, is_stream: bool, includes_usage: bool
) -> Response:
    if not is_stream:
        outputs = await collect(request, engine, job)
        return json_response(shape.response(outputs))
    record: Record = request.state.record
    record.begin(job.request_id, job.num_prompt_tokens)
    events = _events(engine, job, shape, includes_usage, record)
    return EventStream(await unless_gone(request.receive, Started.of(events)))


async def _events(
    engine: AsyncEngine, job: Job, shape: Shape, includes_usage: bool, record: Record
) -> AsyncGenerator[dict[str, Any]]:
    extra: dict[str, Any] = {"usage": None} if includes_usage else {}
    async with contextlib.aclosing(merge(_streams(engine, job, OutputKind.DELTA))) as merged:
        async for index, output in merged:
            record.add(output)
            for chunk in shape.chunks(index, output):
                yield chunk | extra
    if includes_usage:
        num_output = 0 if job.is_scoring else record.num_output_tokens
        yield shape.last_chunk() | {"usage": usage(job.num_prompt_tokens, num_output, record.num_cached_tokens)}
