"""Requests of a model that makes no tokens: all of one HTTP request together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request

from fastkernels.engine.outputs import EncodedResult
from fastkernels.engine.task_client import AsyncTaskEngine
from fastkernels.errors import UnsupportedError
from fastkernels.server.errors import ApiError
from fastkernels.server.record import Record
from fastkernels.server.stream import unless_gone


async def run_all(
    request: Request,
    engine: AsyncTaskEngine,
    inputs: Sequence[Mapping[str, Any]],
    request_id: str,
    refusal: Callable[[str], ApiError],
) -> list[EncodedResult]:
    """The results in order; all are dropped when the client leaves or one fails.

    refusal: what the model says of an input that it does not take, in the words of the route's fields.
    Errors: ApiError, also when the request was aborted; those of AsyncTaskEngine.run.
    """
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
        first = failures.exceptions[0]
        raise (refusal(str(first)) if isinstance(first, UnsupportedError) else first) from None
    record.finish_reasons += ["stop" if result is not None else "abort" for result in results]
    found = [result for result in results if result is not None]
    if len(found) < len(results):
        raise ApiError(400, "The request was aborted.", code="aborted")
    return found
