"""One line of JSON in the log for every request that was finished, aborted or rejected."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from fastkernels.engine.outputs import RequestOutput

logger = logging.getLogger("fastkernels.server")


class Record:
    """What is known of one HTTP request."""

    def __init__(self, method: str, path: str, client: str | None) -> None:
        self.method, self.path, self.client = method, path, client
        self.started = time.perf_counter()
        self.request_id: str | None = None
        self.num_prompt_tokens = self.num_output_tokens = self.num_cached_tokens = 0
        self.first_token: float | None = None
        self.finish_reasons: list[str] = []
        self.status: int | None = None
        self.error: str | None = None
        self.error_code: str | None = None
        self.is_gone = False

    def begin(self, request_id: str, num_prompt_tokens: int) -> None:
        self.request_id, self.num_prompt_tokens = request_id, num_prompt_tokens

    def add(self, output: RequestOutput) -> None:
        if self.first_token is None:
            self.first_token = time.perf_counter()
        for answer in output.outputs:
            self.num_output_tokens += len(answer.token_ids)
            if answer.finish_reason is not None:
                self.finish_reasons.append(answer.finish_reason.value)
        if output.finished:
            self.num_cached_tokens += output.num_cached_tokens

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    @property
    def outcome(self) -> str:
        if self.is_gone:
            return "aborted"
        if self.status == 503 and self.error_code in ("loading", "draining"):
            return "rejected"
        if self.status is None or self.status >= 500 or (self.error is not None and self.status == 200):
            return "failed"
        if self.status >= 400:
            return "rejected"
        return "aborted" if "abort" in self.finish_reasons else "finished"

    def write(self) -> None:
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "event": "request",
            "outcome": self.outcome,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "client": self.client,
            "request_id": self.request_id,
            "prompt_tokens": self.num_prompt_tokens,
            "cached_tokens": self.num_cached_tokens,
            "output_tokens": self.num_output_tokens,
            "finish_reasons": sorted(set(self.finish_reasons)),
            "first_output_ms": None if self.first_token is None else round(1e3 * (self.first_token - self.started), 3),
            "e2e_ms": round(1e3 * self.seconds, 3),
            "error": self.error,
        }
        logger.info(json.dumps(fields))


def write_event(event: str, **fields: Any) -> None:
    """A line about the server itself."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    logger.info(json.dumps({"time": now, "event": event, **fields}, default=str))
