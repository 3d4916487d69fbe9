"""What every request passes: the API key, the size limit, the record, and errors in OpenAI's form."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import traceback

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastkernels.server.errors import ApiError, from_exception
from fastkernels.server.record import Record
from fastkernels.server.service import Service
from fastkernels.server.stream import ClientGone

_OPEN_PATHS = frozenset({"/health", "/ready", "/version", "/metrics"})
_POLLED_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""Asked every few seconds by machines: what goes well there, and that /ready is not yet or no more so, which the log's
events say once, is not written down; no drain waits for it."""

_MOST_DISCARDED = 64 * 2**20


class Gate:
    """Outermost: whatever happens inside is answered and recorded here."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service
        key = service.config.api_key
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        client = scope.get("client")
        record = Record(scope["method"], scope["path"], client[0] if client else None)
        scope.setdefault("state", {})["record"] = record

        async def recorded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                if record.request_id is not None:
                    message["headers"] = [*message["headers"], (b"x-request-id", record.request_id.encode())]
            await send(message)

        try:
            await self._pass(scope, receive, recorded_send)
        except ClientGone:
            record.is_gone = True
        except asyncio.CancelledError:
            if not self.service.is_ending:
                raise
            cut = ApiError(503, "The server is shutting down; the request was cut.", code="draining", retry_after=1)
            await self._answer(cut, record, scope, receive, recorded_send)
        except Exception as error:
            await self._answer(error, record, scope, receive, recorded_send)
        finally:
            self._close(record, scope["path"])

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._key is not None and scope["path"] not in _OPEN_PATHS:
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            scheme, _, key = given.partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(key.lstrip(b" "), self._key):
                raise ApiError(401, "The API key is missing or wrong; send Authorization: Bearer KEY.")
        body = await self._read(receive)
        is_read = False

        async def replay() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        is_waited_for = scope["path"] not in _POLLED_PATHS
        with self.service.in_flight.one() if is_waited_for else contextlib.nullcontext():
            await self.app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes:
        """The body. One that is too large is read on for a while, or the client would not hear why."""
        limit, size, parts = self.service.config.max_body_bytes, 0, []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size <= limit:
                parts.append(part)
            if not message.get("more_body", False) or size > _MOST_DISCARDED:
                break
        if size > limit:
            raise ApiError(413, f"The body has {size} bytes or more; at most {limit} are taken.")
        return b"".join(parts)

    async def _answer(self, error: Exception, record: Record, scope: Scope, receive: Receive, send: Send) -> None:
        failure = from_exception(error)
        record.error, record.error_code = failure.message, failure.code
        if failure.status == 500:
            traceback.print_exception(error)
        if record.status is None:
            await failure.response()(scope, receive, send)

    def _close(self, record: Record, path: str) -> None:
        metrics = self.service.metrics
        if path in _POLLED_PATHS and (record.is_gone or _goes_well(record)):
            return
        route = path if path in self.service.routes else "other"
        metrics.requests.labels(route, record.outcome, str(record.status or "")).inc()
        if record.outcome == "finished" and record.request_id is not None:
            metrics.finished(record.seconds)
        record.write()


def _goes_well(record: Record) -> bool:
    return record.status is not None and (record.status < 400 or record.error_code in ("loading", "draining"))
