"""The routes."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from fastkernels import __version__
from fastkernels.engine.task_client import AsyncTaskEngine
from fastkernels.server import chat_completions, completions, embeddings, images, transcription_form, transcriptions
from fastkernels.server.errors import ApiError, json_response
from fastkernels.server.generation import request_id_of, respond
from fastkernels.server.protocol import (
    AbortBody,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    ImageBody,
    TokenizeBody,
)
from fastkernels.server.service import Phase, Service
from fastkernels.server.stream import unless_gone

_ERROR: dict[str, Any] = {"description": "What is off, in OpenAI's form."}
_OK: dict[int | str, dict[str, Any]] = {200: {"description": "The answer; events when `stream` is set."}}
router = APIRouter(responses=_OK | dict.fromkeys((400, 401, 404, 413, 429, 503), _ERROR))
_started = int(time.time())


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(_service)]


@router.post("/v1/completions")
async def create_completion(body: CompletionBody, request: Request, service: Served) -> Response:
    engine = service.engine_for(body.model)
    job = await completions.build_job(service, body, request_id_of(request, "cmpl"))
    shape = completions.CompletionShape(body, job, engine.processor.vocabulary)
    return await respond(request, engine, job, shape, bool(body.stream), body.includes_usage)


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatBody, request: Request, service: Served) -> Response:
    engine = service.engine_for(body.model)
    building = chat_completions.build_job(service, body, request_id_of(request, "chatcmpl"))
    job = await unless_gone(request.receive, building)
    shape = chat_completions.ChatShape(body, job, engine.processor.vocabulary)
    return await respond(request, engine, job, shape, bool(body.stream), body.includes_usage)


@router.post("/v1/embeddings")
async def create_embedding(body: EmbeddingBody, request: Request, service: Served) -> Response:
    return await embeddings.respond(request, service, body)


@router.post("/v1/images/generations")
async def create_image(body: ImageBody, request: Request, service: Served) -> Response:
    engine = service.engine_for(body.model, makes="image/png")
    assert isinstance(engine, AsyncTaskEngine)
    return await images.respond(request, engine, body)


@router.post("/v1/audio/transcriptions", openapi_extra={"requestBody": transcription_form.SCHEMA})
async def create_transcription(request: Request, service: Served) -> Response:
    """A form with the recording as its file, or its URL in a form or in JSON."""
    return await transcriptions.respond(request, service)


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, service: Served) -> Response:
    service.check_model(body.model)
    service.check_makes("tokens")
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "Give either prompt or messages.", "prompt")
    if body.messages is not None:
        text = service.template.render([message.for_template() for message in body.messages])
        tokens = await service.encode(text, "messages", add_special_tokens=bool(body.add_special_tokens))
    else:
        tokens = await service.encode(body.prompt or "", "prompt", body.add_special_tokens is not False)
    value: dict[str, Any] = {"count": len(tokens), "max_model_len": service.info.max_model_len, "tokens": tokens}
    if body.return_token_strs:
        value["token_strs"] = [service.engine.tokenizer.id_to_token(token) for token in tokens]
    return json_response(value)


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, service: Served) -> Response:
    service.check_model(body.model)
    service.check_makes("tokens")
    service.check_tokens(body.tokens, "tokens")
    return json_response({"prompt": service.engine.tokenizer.decode(body.tokens, skip_special_tokens=False)})


@router.post("/abort")
async def abort(body: AbortBody, service: Served) -> Response:
    """End running requests by the id of their answers (or the X-Request-Id they came with)."""
    given = [body.request_id] if isinstance(body.request_id, str) else body.request_id
    return json_response({"aborted": service.engine.abort(given)})


@router.get("/v1/models")
async def list_models(service: Served) -> Response:
    return json_response({"object": "list", "data": [_model(service, name) for name in service.model_names]})


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, service: Served) -> Response:
    service.check_model(model)
    return json_response(_model(service, model))


@router.get("/v1/kernels")
async def list_kernels(service: Served) -> Response:
    """Which implementation serves each op of the model, and how often each replacement was called."""
    return json_response({"object": "list", "data": await service.engine.kernels()})


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(service: Served) -> Response:
    """200 while the server can do its job, or prepares to."""
    if service.phase is Phase.DEAD:
        raise ApiError(503, "The engine is dead.", code="engine_dead")
    return json_response({"status": service.phase})


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def ready(service: Served) -> Response:
    """200 when requests are taken."""
    if service.phase is not Phase.READY:
        raise ApiError(503, f"The server is {service.phase}.", code=str(service.phase), retry_after=1)
    return json_response({"status": service.phase})


@router.get("/metrics")
async def metrics(service: Served) -> Response:
    return Response(await service.metrics_text(), media_type="text/plain; version=0.0.4")


@router.get("/version")
async def version() -> Response:
    return json_response({"version": __version__})


def _model(service: Service, name: str) -> dict[str, Any]:
    engine = service.started_engine
    return {
        "id": name,
        "object": "model",
        "created": _started,
        "owned_by": "fastkernels",
        "max_model_len": (engine.info.max_model_len or None) if engine is not None else None,
    }
