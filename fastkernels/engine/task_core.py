"""The engine for requests of one step or of N: no tokens, no pages; at each step batches of equal shapes form."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastkernels.engine.outputs import FinishReason
from fastkernels.engine.runners.batched import State, shape_key
from fastkernels.errors import UnsupportedError, UsageError


class TaskRunner(Protocol):
    """SinglePassRunner or IterativeRunner."""

    def start(self, inputs: Mapping[str, Any]) -> tuple[State, int]: ...

    def advance(self, states: Sequence[State], steps: Sequence[int]) -> list[State]: ...

    def finish(self, state: State) -> Any: ...


@dataclass(frozen=True)
class TaskRequest:
    """inputs: what the model's `prepare` takes, by name."""

    request_id: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class TaskOutput:
    """How far a request has come; `result` when it is finished."""

    request_id: str
    step: int
    num_steps: int
    finish_reason: FinishReason | None = None
    result: Any = None


@dataclass(eq=False)
class _Task:
    request_id: str
    state: State
    num_steps: int
    key: object
    step: int = 0


class TaskCore:
    """Each step advances the oldest request, and with it the others of its shapes, oldest first, up to max_batch."""

    def __init__(self, runner: TaskRunner, max_batch: int = 64, max_num_waiting: int = 4096) -> None:
        if max_batch < 1:
            raise UsageError(f"max_batch is {max_batch}; the least is 1.")
        self.runner, self.max_batch, self.max_num_waiting = runner, max_batch, max_num_waiting
        self._tasks: deque[_Task] = deque()
        self._news: list[TaskOutput] = []
        self.num_steps = 0

    @property
    def has_unfinished(self) -> bool:
        return bool(self._tasks or self._news)

    def add(self, request: TaskRequest) -> None:
        """Errors: UnsupportedError when too many wait; those of the model's `prepare` for its inputs."""
        if len(self._tasks) >= self.max_num_waiting:
            raise UnsupportedError(f"{len(self._tasks)} requests wait; max_num_waiting is {self.max_num_waiting}.")
        state, num_steps = self.runner.start(request.inputs)
        self._tasks.append(_Task(request.request_id, state, num_steps, shape_key(state)))

    def abort(self, request_ids: Iterable[str]) -> None:
        """Drop requests; ids that are not here are ignored."""
        wanted = set(request_ids)
        for task in [t for t in self._tasks if t.request_id in wanted]:
            self._tasks.remove(task)
            self._news.append(TaskOutput(task.request_id, task.step, task.num_steps, FinishReason.ABORT))

    def step(self) -> list[TaskOutput]:
        """Advance one batch by a step; what is new of each request in it."""
        if self._tasks:
            key = self._tasks[0].key
            batch = [task for task in self._tasks if task.key == key][: self.max_batch]
            states = self.runner.advance([task.state for task in batch], [task.step for task in batch])
            self.num_steps += 1
            for task, state in zip(batch, states, strict=True):
                task.state, task.step = state, task.step + 1
                self._tell(task)
        news, self._news = self._news, []
        return news

    def _tell(self, task: _Task) -> None:
        if task.step < task.num_steps:
            self._news.append(TaskOutput(task.request_id, task.step, task.num_steps))
            return
        self._tasks.remove(task)
        result = self.runner.finish(task.state)
        self._news.append(TaskOutput(task.request_id, task.step, task.num_steps, FinishReason.STOP, result))
