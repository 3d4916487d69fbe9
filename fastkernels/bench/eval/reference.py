"""The baseline outside of timing: it makes requests, shows how long a pass takes, and reads candidates' tokens."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from fastkernels.bench.eval import payload
from fastkernels.bench.eval.order import Order
from fastkernels.bench.eval.processes import Nursery, Reply, Worker

_SECONDS = 3600.0
"""The baseline is waited for: nothing says yet how long it takes."""


class Reference:
    """A baseline worker, started when it is first asked; use as a context manager.

    On a CPU it stays, idle, while others are timed. On a GPU it would hold their memory: `rest` ends it.
    """

    def __init__(self, nursery: Nursery, order: Order) -> None:
        self._nursery, self._order = nursery, order
        self._worker: Worker | None = None
        self.facts: dict[str, Any] = {}
        self.startup_seconds = 0.0
        self.confinement: dict[str, Any] = {}

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._end()

    def make(self, num: int, seed: int) -> list[Any]:
        """Requests of a pipeline's own kind. Errors: WorkerFailed."""
        reply = self._call("make", payload.pack({"num": num, "seed": seed}))
        requests: list[Any] = payload.unpack(reply.data)
        return requests

    def run(self, data: bytes) -> Reply:
        """Errors: WorkerFailed."""
        return self._call("run", data)

    def score(self, requests: Sequence[Any], suppressed: Sequence[int]) -> list[dict[str, Any]]:
        """Each answer's tokens as the model sees them. Errors: WorkerFailed."""
        reply = self._call("score", payload.pack({"requests": list(requests), "suppressed": list(suppressed)}))
        scored: list[dict[str, Any]] = payload.unpack(reply.data)
        self.rest()
        return scored

    def share(self) -> None:
        """Workers to come find what this one imported in the process that they are forked from, and a copy of the
        kernels that it compiled."""
        reply = self._call("report", b"")
        self._nursery.preload(reply.facts["modules"])
        assert self._worker is not None
        self._nursery.keep_caches(self._worker)

    def rest(self) -> None:
        """Nothing more is asked for now."""
        if self._order.fills_its_device:
            self._end()

    def _call(self, what: str, data: bytes) -> Reply:
        if self._worker is None:
            self._worker = self._nursery.start(self._order)
            self.facts = self._worker.ready(_SECONDS)["engine"]
            self.startup_seconds = self._worker.startup_seconds
            self.confinement = self._worker.confinement
        return self._worker.call(what, _SECONDS, data)

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()
