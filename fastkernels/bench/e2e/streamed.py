"""Answers of tokens, read as they are made: what a load measures of them, and completions."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from fastkernels.bench.e2e.http import Endpoint, HttpError, post_events
from fastkernels.bench.e2e.load import RequestRecord
from fastkernels.workloads import TrafficRequest

Json = dict[str, Any]


class Streamed(ABC):
    """Answers in pieces, of as many tokens as are asked for."""

    path = ""
    is_streamed = True
    options: Mapping[str, Any] = {
        "temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }  # fmt: skip
    """ignore_eos and return_token_ids are vLLM's; servers that do not know these leave them out."""

    def content(self, model: str, request: Any) -> bytes:
        return json.dumps(self.body(model, request)).encode()

    @abstractmethod
    def body(self, model: str, request: Any) -> Json: ...

    @abstractmethod
    def text(self, choice: Json) -> str:
        """Of a piece."""

    async def read(self, endpoint: Endpoint, body: bytes, record: RequestRecord, started: float) -> None:
        last = started
        num_pieces = 0
        async for data in post_events(endpoint, self.path, body):
            now = time.perf_counter()
            event = json.loads(data)
            if event.get("error"):
                raise HttpError(0, str(event["error"])[:500])
            for choice in event.get("choices", ())[:1]:
                if not self.is_piece(choice):
                    continue
                if num_pieces:
                    record.itl_s.append(now - last)
                else:
                    record.ttft_s = now - started
                num_pieces += 1
                last = now
                record.text += self.text(choice)
                if choice.get("token_ids") is not None:
                    record.token_ids = (record.token_ids or []) + choice["token_ids"]
            usage = event.get("usage") or {}
            if "completion_tokens" in usage:
                record.output_len = usage["completion_tokens"]
                record.prompt_len = record.prompt_len or usage.get("prompt_tokens", 0)
                record.num_cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        if not num_pieces:
            raise HttpError(0, "The answer had no token.")
        record.e2e_s = last - started
        record.output_len = record.output_len or num_pieces

    def is_piece(self, choice: Json) -> bool:
        """Whether it brings a token: a chat begins with whose turn it is."""
        return bool(self.text(choice) or choice.get("token_ids"))


class Completions(Streamed):
    path = "/v1/completions"

    def body(self, model: str, request: TrafficRequest) -> Json:
        return {"model": model, "prompt": request.prompt_token_ids, "max_tokens": request.output_len, **self.options}

    def record(self, index: int, request: TrafficRequest, start_s: float) -> RequestRecord:
        return RequestRecord(index, len(request.prompt_token_ids), request.output_len, start_s)

    def text(self, choice: Json) -> str:
        return choice.get("text") or ""

    def is_piece(self, choice: Json) -> bool:
        """A token may be no text yet."""
        return True
