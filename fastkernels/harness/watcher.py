"""What the judge does while it waits for a worker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastkernels.harness.verdict import Rejection, Verdict

if TYPE_CHECKING:
    from fastkernels.harness.workers import Worker


class Watcher:
    """Called between looks at the bell or the socket: enforces time, life and memory.

    is_in_block: whether a word on the socket would go unheard otherwise.
    """

    def __init__(self, worker: Worker, seconds: float, *, is_in_block: bool) -> None:
        self.worker, self.seconds, self.is_in_block = worker, seconds, is_in_block
        self._deadline = time.monotonic() + seconds
        self._next_look = time.monotonic() + 0.01

    def __call__(self) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + 0.05
        if self.is_in_block:
            self.worker.listen()
        if now > self._deadline:
            raise Rejection(
                Verdict.TIMEOUT, f"A call gave no answer within {self.seconds:.0f} s; the worker was ended."
            )
        if not self.worker.is_alive():
            raise self.worker.death()
        self.worker.check_memory()
