"""The engine for requests of one step or of N: no tokens, no pages; at each step batches of equal shapes form."""

from __future__ import annotations

import logging
import traceback
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from fastkernels.engine.outputs import FinishReason
from fastkernels.engine.runners.batched import shape_key
from fastkernels.engine.runners.replay import State
from fastkernels.engine.task_output import TaskOutput, TaskRequest
from fastkernels.engine.text import check_text
from fastkernels.errors import UnsupportedError, UsageError

logger = logging.getLogger(__name__)


class TaskRunner(Protocol):
    """SinglePassRunner, IterativeRunner or PackedRunner, which has its own `batch_key` and `num_in_step`."""

    def start(self, inputs: Mapping[str, Any]) -> tuple[State, int]: ...

    def advance(self, states: Sequence[State], steps: Sequence[int]) -> list[State]: ...

    def finish(self, state: State) -> Any: ...


@dataclass(eq=False)
class _Task:
    request_id: str
    state: State
    num_steps: int
    key: object
    step: int = 0


class TaskCore:
    """Each step advances the oldest request, and with it the others of its shapes, oldest first, up to max_batch.

    max_num_waiting: requests without a step yet, at most. isolates_errors: what goes wrong in a step ends the requests
    in it and no others, as a server wants it; of those that do not fit into a GPU's memory together, half go on alone.
    texts: names of the inputs that are read as texts.
    """

    def __init__(
        self, runner: TaskRunner, max_batch: int = 64, max_num_waiting: int = 4096, texts: Collection[str] = ()
    ) -> None:
        if max_batch < 1:
            raise UsageError(f"max_batch is {max_batch}; the least is 1.")
        self.runner, self.max_batch, self.max_num_waiting, self._texts = runner, max_batch, max_num_waiting, texts
        self.isolates_errors = False
        self._tasks: deque[_Task] = deque()
        self._news: list[TaskOutput] = []
        self._most_of: dict[object, int] = {}  # by key, where fewer than max_batch fit into memory
        self.num_steps = 0

    @property
    def has_unfinished(self) -> bool:
        return bool(self._tasks or self._news)

    @property
    def num_unfinished(self) -> int:
        return len(self._tasks)

    def add(self, request: TaskRequest) -> None:
        """Errors: UnsupportedError when too many wait; UsageError for a text that is not Unicode; those of the model's
        `prepare` for its inputs."""
        most = self.max_num_waiting
        if len(self._tasks) >= most and (num := sum(not task.step for task in self._tasks)) >= most:
            raise UnsupportedError(f"{num} requests wait; max_num_waiting is {most}.")
        for name in self._texts:
            for text in _texts_in(request.inputs.get(name)):
                check_text(text, name)
        state, num_steps = self.runner.start(request.inputs)
        self._tasks.append(_Task(request.request_id, state, num_steps, self._key_of(state)))

    def _key_of(self, state: State) -> object:
        return getattr(self.runner, "batch_key", shape_key)(state)

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
            most = self._most_of.get(key, self.max_batch)
            batch = [task for task in self._tasks if task.key == key][:most]
            batch = batch[: getattr(self.runner, "num_in_step", len)([task.state for task in batch])]
            try:
                self._advance(batch)
            except Exception as error:
                if not self.isolates_errors:
                    raise
                self._drop(batch, error)
        news, self._news = self._news, []
        return news

    def _advance(self, batch: Sequence[_Task]) -> None:
        states = self._next_states(batch)
        if states is None:
            self._halve(batch)
            return
        self.num_steps += 1
        for task, state in zip(batch, states, strict=True):
            if not task.step:  # the first may have encoded what was given
                task.key = self._key_of(state)
            task.state, task.step = state, task.step + 1
            self._tell(task)

    def _next_states(self, batch: Sequence[_Task]) -> list[State] | None:
        """None where memory was too small for several; their own states are as they were."""
        try:
            return self.runner.advance([task.state for task in batch], [task.step for task in batch])
        except torch.OutOfMemoryError:
            if not self.isolates_errors or len(batch) == 1:
                raise
            return None

    def _halve(self, batch: Sequence[_Task]) -> None:
        """Behind the error, for its traceback keeps the step's tensors."""
        torch.cuda.empty_cache()
        self._most_of[batch[0].key] = len(batch) // 2
        logger.warning(
            "%d requests do not fit into memory together; %d a step from now on.", len(batch), len(batch) // 2
        )

    def _drop(self, batch: Sequence[_Task], error: Exception) -> None:
        """Those of the batch that have not ended end with the error."""
        traceback.print_exception(error)
        message = f"{type(error).__name__}: {error}"
        for task in batch:
            if task in self._tasks:
                self._tasks.remove(task)
                reason = FinishReason.ERROR
                self._news.append(TaskOutput(task.request_id, task.step, task.num_steps, reason, error=message))

    def _tell(self, task: _Task) -> None:
        if task.step < task.num_steps:
            self._news.append(TaskOutput(task.request_id, task.step, task.num_steps))
            return
        result = self.runner.finish(task.state)
        self._tasks.remove(task)
        self._news.append(TaskOutput(task.request_id, task.step, task.num_steps, FinishReason.STOP, result))


def _texts_in(value: Any) -> list[str]:
    """Of an input that is a text or a list of them."""
    return [text for text in (value if isinstance(value, list | tuple) else [value]) if isinstance(text, str)]
