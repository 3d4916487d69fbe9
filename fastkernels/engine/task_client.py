"""An engine of a model that makes no tokens, as an asyncio program sees it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable, Mapping
from typing import Any

from fastkernels.engine.client import AsyncEngine, EngineDeadError, OverloadedError, RequestFailedError
from fastkernels.engine.outputs import EncodedResult, FinishReason
from fastkernels.engine.process import pack
from fastkernels.engine.task_output import TaskOutput, TaskRequest
from fastkernels.errors import UnsupportedError


class _Task:
    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.has_started = False
        self.done: asyncio.Future[EncodedResult | None] = asyncio.get_running_loop().create_future()


class AsyncTaskEngine(AsyncEngine):
    """As AsyncEngine, with `run` instead of `generate`."""

    def __init__(self, *args: Any) -> None:
        self._tasks: dict[str, _Task] = {}
        super().__init__(*args)

    @property
    def num_unfinished(self) -> int:
        return len(self._tasks)

    @property
    def num_waiting(self) -> int:
        """Requests that have had no step yet."""
        return sum(not task.has_started for task in self._tasks.values())

    async def run(self, inputs: Mapping[str, Any], request_id: str) -> EncodedResult | None:
        """The result; None when the request was aborted. Leaving early aborts it. Calls may share a request_id.

        Errors: UnsupportedError for what can never run, RequestFailedError, OverloadedError, EngineDeadError.
        """
        if not self.is_alive:
            raise EngineDeadError(self.death or "The engine is not running.")
        if self.num_waiting >= self.config.max_num_waiting:
            raise OverloadedError(
                f"{self.num_waiting} requests wait; at most {self.config.max_num_waiting} may (max_num_waiting). Try "
                "again later.",
                min(60, max(1, round(self._wait_seconds))),
            )
        engine_id = self._ids.begin(request_id)
        task = self._tasks[engine_id] = _Task()
        self._writer.write(pack(("add", [TaskRequest(engine_id, dict(inputs))])))
        try:
            return await task.done
        finally:
            del self._tasks[engine_id]
            self._ids.end(request_id, engine_id)
            if self.is_alive:
                self._writer.write(pack(("abort", [engine_id])))  # nothing when it has ended

    def abort(self, request_ids: Iterable[str]) -> list[str]:
        """End every call of these ids; `run` returns None. Returns those of the ids that were running."""
        known = self._ids.open_calls(request_ids)
        for engine_id in itertools.chain.from_iterable(known.values()):
            self._finish(engine_id, None)
        return list(known)

    def _finish(self, engine_id: str, result: EncodedResult | Exception | None) -> None:
        task = self._tasks.get(engine_id)
        if task is None or task.done.done():
            return
        if isinstance(result, Exception):
            task.done.set_exception(result)
        else:
            task.done.set_result(result)

    def _on_outputs(self, outputs: list[Any]) -> None:
        for output in outputs:
            assert isinstance(output, TaskOutput)
            task = self._tasks.get(output.request_id)
            if task is None:
                continue
            if not task.has_started:
                task.has_started = True
                self._wait_seconds += 0.1 * (time.perf_counter() - task.started - self._wait_seconds)
            if output.finish_reason is FinishReason.ERROR:
                self._finish(output.request_id, RequestFailedError(output.error or "The engine could not go on."))
            elif output.finish_reason is not None:
                self._finish(output.request_id, output.result)

    def _on_refused(self, engine_id: str, fault: str, parameter: str | None, message: str) -> None:
        self._finish(engine_id, (RequestFailedError if fault == "internal" else UnsupportedError)(message))

    def _fail(self, message: str) -> None:
        for engine_id in list(self._tasks):
            self._finish(engine_id, EngineDeadError(message))
        super()._fail(message)
