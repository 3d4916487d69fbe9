"""What a load sends to a server and how it reads the answer, by what the model takes and makes."""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from fastkernels.bench.e2e.http import Endpoint, HttpError, post
from fastkernels.bench.e2e.load import RequestRecord, Route
from fastkernels.bench.e2e.media_routes import Chats, Transcriptions
from fastkernels.bench.e2e.streamed import Completions, Json
from fastkernels.engine.outputs import EMBEDDING
from fastkernels.registry import Architecture, Kind


class _Whole(ABC):
    """Answers that come in one piece. Of what was said the digest is kept."""

    path = ""
    key = ""
    is_streamed = False

    def content(self, model: str, request: Mapping[str, Any]) -> bytes:
        return json.dumps(self.body(model, request)).encode()

    @abstractmethod
    def body(self, model: str, request: Mapping[str, Any]) -> Json: ...

    def record(self, index: int, request: Mapping[str, Any], start_s: float) -> RequestRecord:
        return RequestRecord(index, 0, 0, start_s)

    async def read(self, endpoint: Endpoint, body: bytes, record: RequestRecord, started: float) -> None:
        answer = await post(endpoint, self.path, body)
        record.e2e_s = time.perf_counter() - started
        record.prompt_len = (answer.get("usage") or {}).get("prompt_tokens", 0)
        said = [one[self.key] for one in answer["data"]]
        if not said:
            raise HttpError(0, "The answer held no data.")
        record.text = hashlib.sha256("\n".join(said).encode()).hexdigest()


class Embeddings(_Whole):
    path = "/v1/embeddings"
    key = "embedding"

    def body(self, model: str, request: Mapping[str, Any]) -> Json:
        return {"model": model, "input": request["text"], "encoding_format": "base64"}


class Images(_Whole):
    """guidance_scale and num_inference_steps are extensions, by diffusers' names."""

    path = "/v1/images/generations"
    key = "b64_json"

    def body(self, model: str, request: Mapping[str, Any]) -> Json:
        return {
            "model": model,
            "prompt": request["prompt"],
            "response_format": "b64_json",
            "guidance_scale": request["guidance_scale"],
            "num_inference_steps": request["steps"],
            "seed": request["seed"],
        }


_BY_MEDIA_TYPE: Mapping[str, type[Embeddings] | type[Images]] = {EMBEDDING: Embeddings, "image/png": Images}


def route_of(architecture: Architecture) -> Route | None:
    """Where answers of such a model are asked for; None where OpenAI has no route for them."""
    if architecture.kind is Kind.AUTOREGRESSIVE:
        modalities = getattr(_pipeline(architecture), "modalities", ()) if architecture.pipeline else ()
        return Transcriptions() if "audio" in modalities else Chats() if modalities else Completions()
    route = _BY_MEDIA_TYPE.get(getattr(_pipeline(architecture), "media_type", ""))
    return route() if route else None


def examples_of(architecture: Architecture, num: int, seed: int) -> Sequence[Mapping[str, Any]]:
    """The pipeline's example requests, of a model that need not be built for them."""
    found: Sequence[Mapping[str, Any]] = _pipeline(architecture).example_requests(num, seed)
    return found


def _pipeline(architecture: Architecture) -> Any:
    module, _, name = architecture.pipeline.partition(":")
    return getattr(importlib.import_module(module), name)
