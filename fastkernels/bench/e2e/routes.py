"""What a load sends to a server and how it reads the answer: streamed completions, embeddings, pictures."""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastkernels.bench.e2e.http import Endpoint, HttpError, post_events, post_json
from fastkernels.bench.e2e.load import RequestRecord, Route
from fastkernels.engine.outputs import EMBEDDING
from fastkernels.registry import Architecture, Kind
from fastkernels.workloads import TrafficRequest

Json = dict[str, Any]


class Completions:
    """Streamed, of as many tokens as are asked for."""

    path = "/v1/completions"

    def body(self, model: str, request: TrafficRequest) -> Json:
        """return_token_ids is vLLM's; servers that do not know it leave it out."""
        return {
            "model": model, "prompt": request.prompt_token_ids, "max_tokens": request.output_len,
            "temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }  # fmt: skip

    def record(self, index: int, request: TrafficRequest, start_s: float) -> RequestRecord:
        return RequestRecord(index, len(request.prompt_token_ids), request.output_len, start_s)

    async def read(self, endpoint: Endpoint, body: bytes, record: RequestRecord, started: float) -> None:
        last = started
        num_pieces = 0
        async for data in post_events(endpoint, self.path, body):
            now = time.perf_counter()
            event = json.loads(data)
            if event.get("error"):
                raise HttpError(0, str(event["error"])[:500])
            for choice in event.get("choices", ())[:1]:
                if num_pieces:
                    record.itl_s.append(now - last)
                else:
                    record.ttft_s = now - started
                num_pieces += 1
                last = now
                record.text += choice.get("text") or ""
                if choice.get("token_ids") is not None:
                    record.token_ids = (record.token_ids or []) + choice["token_ids"]
            usage = event.get("usage") or {}
            if "completion_tokens" in usage:
                record.output_len = usage["completion_tokens"]
                record.num_cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        if not num_pieces:
            raise HttpError(0, "The answer had no token.")
        record.e2e_s = last - started
        record.output_len = record.output_len or num_pieces


class _Whole:
    """Answers that come in one piece. Of what was said the digest is kept."""

    path = ""
    key = ""

    def record(self, index: int, request: Mapping[str, Any], start_s: float) -> RequestRecord:
        return RequestRecord(index, 0, 0, start_s)

    async def read(self, endpoint: Endpoint, body: bytes, record: RequestRecord, started: float) -> None:
        answer = await post_json(endpoint, self.path, body)
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
        return Completions()
    route = _BY_MEDIA_TYPE.get(getattr(_pipeline(architecture), "media_type", ""))
    return route() if route else None


def examples_of(architecture: Architecture, num: int, seed: int) -> Sequence[Mapping[str, Any]]:
    """The pipeline's example requests, of a model that need not be built for them."""
    found: Sequence[Mapping[str, Any]] = _pipeline(architecture).example_requests(num, seed)
    return found


def _pipeline(architecture: Architecture) -> Any:
    module, _, name = architecture.pipeline.partition(":")
    return getattr(importlib.import_module(module), name)
