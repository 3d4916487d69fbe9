"""Every error a client of the server can meet, in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from fastkernels.engine.chat import ChatTemplateError
from fastkernels.engine.client import EngineDeadError, OverloadedError
from fastkernels.engine.sampling_params import SamplingParamsError
from fastkernels.errors import FastKernelsError, UnsupportedError, UsageError

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 413: "body_too_large", 429: "rate_limit_exceeded", 503: "service_unavailable"}
_MOST_SHOWN = 120


class ApiError(Exception):
    """An answer that is an error. param: the field of the request that is off."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = code or _CODES.get(status)
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return json_response(self.body(), self.status, headers)


def check_unicode(text: str, param: str) -> None:
    r"""Errors: ApiError 400 for half of a pair, as JSON's "\ud800" spells it: no encoder and no tokenizer takes one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"{param} holds a lone surrogate at {error.start}; it is no Unicode text."
        raise ApiError(400, message, param) from error


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    # ASCII: a lone surrogate that a client sent can be told back to it
    return Response(json.dumps(value), status, dict(headers or {}), "application/json")


def from_exception(error: Exception) -> ApiError:
    """What the engine refused, as an answer; anything unknown is a 500 that tells nothing."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, SamplingParamsError):
        return ApiError(400, str(error), error.parameter)
    if isinstance(error, ChatTemplateError):
        return ApiError(400, str(error), "messages")
    if isinstance(error, UnsupportedError | UsageError):
        return ApiError(400, str(error))
    if isinstance(error, OverloadedError):
        return ApiError(429, str(error), retry_after=error.retry_after)
    if isinstance(error, EngineDeadError):
        return ApiError(503, str(error), code="engine_dead")
    message = str(error) if isinstance(error, FastKernelsError) else "Internal error; the server's log tells more."
    return ApiError(500, message, code="internal_error")


def from_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first field that is off, its value and what it must be."""
    first = errors[0]
    location = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}.")
    if not location:
        return ApiError(400, f"The body must be a JSON object with Content-Type application/json: {first['msg']}.")
    param = location[0]
    reasons = dict.fromkeys(e["msg"] for e in errors if [str(p) for p in e["loc"] if p != "body"][:1] == [param])
    path = ".".join(p for p in location if p.isidentifier() or p.isdigit())
    shown = "" if first["type"] == "missing" else f" is {_shown(first.get('input'))};"
    return ApiError(400, f"{path}{shown} {'; or '.join(list(reasons)[:4])}.", param)


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, default=str)
    except (RecursionError, ValueError):
        return "too deep to show"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
