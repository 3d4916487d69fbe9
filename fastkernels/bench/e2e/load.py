"""Load on an OpenAI-compatible server: arrivals, and when each answer or each piece of it came."""

from __future__ import annotations

import asyncio
import contextlib
import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from fastkernels.bench.e2e.http import Endpoint, HttpError
from fastkernels.errors import UsageError


@dataclass(frozen=True)
class Arrivals:
    """When requests are sent. request_rate: a second, inf is all at once; None: the requests' own times over speedup.

    burstiness: the shape of the gamma distribution of the gaps; 1 is a Poisson process, less is burstier.
    Errors: UsageError names the value and its limit.
    """

    request_rate: float | None = math.inf
    burstiness: float = 1.0
    speedup: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("request_rate", "burstiness", "speedup"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} is {value}; it must be above 0.")
        if math.isinf(self.speedup) or math.isinf(self.burstiness):
            raise UsageError("speedup and burstiness must be finite; request_rate inf sends all at once.")

    def times(self, requests: Sequence[Any]) -> list[float]:
        """Seconds from the start of the load. Drawn gaps are stretched so that the last arrival comes at count / rate,
        as vLLM's benchmark does: https://github.com/vllm-project/vllm/blob/main/vllm/benchmarks/serve.py
        """
        if self.request_rate is None:
            return [request.arrival_s / self.speedup for request in requests]
        if math.isinf(self.request_rate):
            return [0.0] * len(requests)
        generator = np.random.default_rng(self.seed)
        times = np.cumsum(generator.gamma(self.burstiness, 1 / (self.request_rate * self.burstiness), len(requests)))
        if times[-1] > 0:
            times *= len(requests) / self.request_rate / times[-1]
        return [float(t) for t in times]


@dataclass
class RequestRecord:
    """One request under load. Times are seconds; start_s, from the start of the load, is when it was sent.

    ttft_s: from sending to the first piece, of an answer that comes in pieces. itl_s: gaps between the pieces. e2e_s:
    from sending to the last piece. prompt_len, output_len: in tokens; by the server's usage where it is not known
    before, output_len else the number of pieces. token_ids: where the server tells them. text: what was said, or the
    digest of an answer that is no text.
    """

    index: int
    prompt_len: int
    asked_len: int
    start_s: float
    ttft_s: float | None = None
    e2e_s: float | None = None
    itl_s: list[float] = field(default_factory=list)
    output_len: int = 0
    num_cached_tokens: int | None = None
    text: str = ""
    token_ids: list[int] | None = None
    error: str | None = None

    @property
    def is_complete(self) -> bool:
        return self.error is None and self.e2e_s is not None

    def to_json(self) -> dict[str, Any]:
        """Without what was said; times to the microsecond."""
        data = {key: value for key, value in asdict(self).items() if key not in ("text", "token_ids")}
        data["itl_s"] = [round(value, 6) for value in self.itl_s]
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in data.items()}


class Route(Protocol):
    """What is sent for a request, and how its answer is read. path: below the server's URL. is_streamed: the answer
    comes in pieces; one that does not has E2E alone."""

    path: str
    is_streamed: bool

    def content(self, model: str, request: Any) -> bytes:
        """The body."""
        ...

    def record(self, index: int, request: Any, start_s: float) -> RequestRecord:
        """Of a request that is sent now."""
        ...

    async def read(self, endpoint: Endpoint, body: bytes, record: RequestRecord, started: float) -> None:
        """Fill the record as the answer comes; started: by time.perf_counter.

        Errors: HttpError, OSError, and ValueError, KeyError, TypeError or AttributeError of what is no answer.
        """
        ...


@dataclass
class Load:
    """Requests against a server. records: of the requests that ended, in the order of their ends."""

    endpoint: Endpoint
    model: str
    route: Route
    max_concurrency: int | None = None
    progress: Callable[[int, int], None] = lambda done, total: None
    records: list[RequestRecord] = field(default_factory=list)
    started: float = 0.0

    async def run(self, requests: Sequence[Any], times: Sequence[float]) -> None:
        """Send each at its time, whether or not others have ended; records are kept when this is cancelled."""
        raise_file_limit()
        limit: Any = asyncio.Semaphore(self.max_concurrency) if self.max_concurrency else contextlib.nullcontext()
        bodies = [self.route.content(self.model, request) for request in requests]
        self.started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for index, (request, at) in enumerate(zip(requests, times, strict=True)):
                await asyncio.sleep(max(0.0, self.started + at - time.perf_counter()))
                group.create_task(self._send(index, request, bodies[index], limit, len(requests)))

    async def _send(self, index: int, request: Any, body: bytes, limit: Any, total: int) -> None:
        async with limit:
            started = time.perf_counter()
            record = self.route.record(index, request, started - self.started)
            try:
                await self.route.read(self.endpoint, body, record, started)
            except (HttpError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                record.error = f"{type(error).__name__}: {error}"
            self.records.append(record)
            self.progress(len(self.records), total)


def raise_file_limit() -> None:
    """A connection is an open file: as many as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else hard
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
