"""Answers that come in pieces (server-sent events), and what happens when the reader leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, Generic, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fastkernels.server.errors import from_exception

_Value = TypeVar("_Value")
DONE = "[DONE]"


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


async def unless_gone(receive: Receive, work: Awaitable[_Value]) -> _Value:
    """The result of `work`, which is cancelled when the client leaves. Errors: ClientGone."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for pending in (task, watch):
            if not pending.done():
                pending.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await pending


class Started(Generic[_Value]):
    """A stream whose first value was awaited, so that an error before it can still be an error's answer."""

    def __init__(self, first: _Value, rest: AsyncGenerator[_Value]) -> None:
        self._first: list[_Value] = [first]
        self._rest = rest

    @classmethod
    async def of(cls, values: AsyncGenerator[_Value]) -> Started[_Value]:
        try:
            return cls(await anext(values), values)
        except BaseException:
            await values.aclose()
            raise

    def __aiter__(self) -> Started[_Value]:
        return self

    async def __anext__(self) -> _Value:
        return self._first.pop() if self._first else await anext(self._rest)

    async def aclose(self) -> None:
        await self._rest.aclose()


class EventStream(Response):
    """One event a value. An error after the first is told as an event and ends the stream."""

    def __init__(self, values: Started[dict[str, Any]]) -> None:
        super().__init__(media_type="text/event-stream")
        self._values = values

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        async with contextlib.aclosing(self._values):
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await unless_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async def tell(data: str, is_last: bool = False) -> None:
            event = f"data: {data}\n\n".encode()
            await send({"type": "http.response.body", "body": event, "more_body": not is_last})

        try:
            async for value in self._values:
                await tell(json.dumps(value))
        except Exception as error:
            await tell(json.dumps(from_exception(error).body()), is_last=True)
            raise
        await tell(DONE, is_last=True)


async def merge(streams: Sequence[AsyncGenerator[_Value]]) -> AsyncGenerator[tuple[int, _Value]]:
    """What the streams give, as it comes, with the number of its stream."""
    tasks = {asyncio.ensure_future(anext(stream)): index for index, stream in enumerate(streams)}
    try:
        while tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = tasks.pop(task)
                try:
                    value = task.result()
                except StopAsyncIteration:
                    continue
                yield index, value
                tasks[asyncio.ensure_future(anext(streams[index]))] = index
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
