"""Requests that were accepted and are not answered yet, and the threads that work for them."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_MOST_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""As many as asyncio would have."""


class InFlight:
    """Requests between the last byte of their body and the last of their answer."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def __len__(self) -> int:
        return len(self._tasks)

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """This task answers a request for as long as the block runs."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._is_idle.clear()
        try:
            yield
        finally:
            self._tasks.discard(task)
            if not self._tasks:
                self._is_idle.set()

    async def drain(self, timeout: float) -> bool:
        """Wait for all to be answered, so many seconds at most; whether they were."""
        try:
            await asyncio.wait_for(self._is_idle.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


class Threads(ThreadPoolExecutor):
    """An executor for asyncio, of daemon threads: neither the loop's end nor the process's waits for them.

    As its default asyncio takes no executor of another class; nothing of this one is used.
    """

    def __init__(self, most: int = _MOST_THREADS) -> None:
        super().__init__()
        self._most = most
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._unfinished: set[Future[Any]] = set()
        self._num_threads = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        self._jobs.put((future, functools.partial(fn, *args, **kwargs)))
        if self._num_threads < min(self._most, len(self._unfinished)):
            self._num_threads += 1
            threading.Thread(target=self._work, name=f"server-{self._num_threads}", daemon=True).start()
        return future

    def _work(self) -> None:
        while True:
            _do(*self._jobs.get())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for future in list(self._unfinished):
            future.cancel()  # which leaves those that have begun

    def leave(self, exit_code: int) -> None:
        """At the process's end, end it at once if something still runs here: a thread in a library's code can hold
        Python's own end up, or break it."""
        if self._unfinished:
            atexit.register(_end, exit_code)


def _do(future: Future[Any], job: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = job()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def _end(exit_code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
