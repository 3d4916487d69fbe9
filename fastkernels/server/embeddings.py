"""POST /v1/embeddings: of a model that makes tokens its last token's state, of one that makes embeddings its own."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from fastkernels.engine.outputs import EMBEDDING
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.engine.task_client import AsyncTaskEngine
from fastkernels.server import completions
from fastkernels.server.errors import ApiError, check_unicode, json_response
from fastkernels.server.generation import Job, collect, request_id_of
from fastkernels.server.protocol import EmbeddingBody
from fastkernels.server.service import Service
from fastkernels.server.tasks import run_all


async def respond(request: Request, service: Service, body: EmbeddingBody) -> Response:
    """All embeddings; all are dropped when the client leaves or one fails."""
    makes = EMBEDDING if service.makes(EMBEDDING) else "tokens"
    engine = service.engine_for(body.model, makes)
    body.check()
    model = body.model or service.model_names[0]
    if isinstance(engine, AsyncTaskEngine):
        inputs = _inputs(service, body)
        results = await run_all(request, engine, inputs, request_id_of(request, "embd"), _refusal)
        request.state.record.num_prompt_tokens = sum(int(one.summary["num_tokens"]) for one in results)
        vectors: list[Sequence[float]] = [one.vector for one in results]
        return _answer(body, model, vectors, request.state.record.num_prompt_tokens)
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
    for one in many:
        if isinstance(one, str):
            check_unicode(one, "input")
        elif not one:
            raise ApiError(400, "input is empty; at least 1 token is needed.", "input")
    return [{"text": one} if isinstance(one, str) else {"input_ids": one} for one in many]


def _refusal(message: str) -> ApiError:
    """The model calls token ids otherwise."""
    name, _, rest = message.partition(" ")
    return ApiError(400, f"input {rest}" if name == "input_ids" else message, "input")


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
