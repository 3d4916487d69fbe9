"""POST /v1/embeddings: of a model that makes tokens its last token's state, of one that makes embeddings its own."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from fastkernels.engine.outputs import EMBEDDING, EncodedResult
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.engine.task_client import AsyncTaskEngine
from fastkernels.server import completions
from fastkernels.server.errors import ApiError, json_response
from fastkernels.server.generation import Job, collect, request_id_of
from fastkernels.server.protocol import EmbeddingBody
from fastkernels.server.record import Record
from fastkernels.server.service import Service
from fastkernels.server.stream import unless_gone


async def respond(request: Request, service: Service, body: EmbeddingBody) -> Response:
    """All embeddings; all are dropped when the client leaves or one fails."""
    makes = EMBEDDING if service.makes(EMBEDDING) else "tokens"
    engine = service.engine_for(body.model, makes)
    body.check()
    model = body.model or service.model_names[0]
    if isinstance(engine, AsyncTaskEngine):
        results = await _run(request, engine, _inputs(service, body))
        vectors: list[Sequence[float]] = [np.frombuffer(one.content, "<f4").tolist() for one in results]
        return _answer(body, model, vectors, sum(int(one.summary["num_tokens"]) for one in results))
    prompts = await completions.read_prompts(service, body.input, "input")
    for prompt in prompts:
        service.room(len(prompt.token_ids), "input")
    job = Job(request_id_of(request, "embd"), model, prompts, SamplingParams(max_tokens=1))
    outputs = await collect(request, engine, job, is_embedding=True)
    return _answer(body, model, [output.embedding or () for output in outputs], job.num_prompt_tokens)


def _inputs(service: Service, body: EmbeddingBody) -> list[dict[str, Any]]:
    """One request of the model for each text or list of token ids."""
    given = body.input
    many: list[Any] = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    service.check_count(many, "input")
    for text in many:
        if isinstance(text, str):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                message = f"input holds a lone surrogate at {error.start}; it is no Unicode text."
                raise ApiError(400, message, "input") from error
    return [{"text": one} if isinstance(one, str) else {"input_ids": one} for one in many]


async def _run(request: Request, engine: AsyncTaskEngine, inputs: Sequence[dict[str, Any]]) -> list[EncodedResult]:
    request_id = request_id_of(request, "embd")
    record: Record = request.state.record
    record.begin(request_id, 0)
    results: list[EncodedResult | None] = []

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(engine.run(one, request_id)) for one in inputs]
        results.extend(task.result() for task in tasks)

    try:
        await unless_gone(request.receive, run())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    found = [result for result in results if result is not None]
    record.finish_reasons += ["stop"] * len(found) + ["abort"] * (len(results) - len(found))
    record.num_prompt_tokens = sum(int(one.summary["num_tokens"]) for one in found)
    if len(found) < len(results):
        raise ApiError(400, "The request was aborted.", code="aborted")
    return found


def _answer(body: EmbeddingBody, model: str, vectors: Sequence[Sequence[float]], num_tokens: int) -> Response:
    data = [
        {"object": "embedding", "index": i, "embedding": _encoded(vector, body.encoding_format)}
        for i, vector in enumerate(vectors)
    ]
    used = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return json_response({"object": "list", "data": data, "model": model, "usage": used})


def _encoded(vector: Sequence[float], encoding: str | None) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return list(vector)
