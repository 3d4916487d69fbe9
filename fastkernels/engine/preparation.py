"""What is done for a request before the engine takes it, in a thread: no step of the others waits for it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any


class Preparation:
    """Requests on their way to the engine, one after another.

    prepare: what takes long, run in the thread. wake: called there when one is done. All else belongs to the engine's
    own thread.
    """

    def __init__(self, prepare: Callable[[Any], None], wake: Callable[[], None]) -> None:
        self._prepare, self._wake = prepare, wake
        self._waiting: dict[str, Any] = {}
        self._begun: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[str, Exception | None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self, request: Any) -> None:
        self._waiting[request.request_id] = request
        self._begun.put(request)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="preparation", daemon=True)
            self._thread.start()

    def drop(self, request_ids: Iterable[str]) -> None:
        """These are not wanted any more; ids that are not here are ignored."""
        for request_id in request_ids:
            self._waiting.pop(request_id, None)

    def take(self) -> list[tuple[Any, Exception | None]]:
        """Those that are done since the last call, each with what `prepare` raised."""
        taken = []
        while not self._done.empty():
            request_id, error = self._done.get()
            request = self._waiting.pop(request_id, None)
            if request is not None:
                taken.append((request, error))
        return taken

    def _run(self) -> None:
        while True:
            request, error = self._begun.get(), None
            if request.request_id not in self._waiting:
                continue  # it was dropped
            try:
                self._prepare(request)
            except Exception as raised:  # whatever a request does to it, the next ones go on
                error = raised
            self._done.put((request.request_id, error))
            self._wake()
