"""From a bound port to the last answer: start, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import signal
import socket
from collections.abc import Iterator

import uvicorn

from fastkernels.engine.client import AsyncEngine, EngineDeadError
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.model_source import find_model
from fastkernels.errors import EXIT_NOT_PASSED, EnvironmentProblem, FastKernelsError, UsageError
from fastkernels.registry import architecture_of
from fastkernels.server.app import build_app
from fastkernels.server.in_flight import Threads
from fastkernels.server.record import write_event
from fastkernels.server.service import Phase, ServerConfig, Service

_KEEP_ALIVE_SECONDS = 60
_LAST_WORDS_SECONDS = 2
_LAST_ERRORS_SECONDS = 0.5
"""For requests whose engine has gone to say so, before those that never came to it are cut."""


def bind(config: ServerConfig) -> socket.socket:
    """Errors: EnvironmentProblem when the port is taken; UsageError when the host is none of this machine's."""
    try:
        family, _, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise EnvironmentProblem(
                f"Port {config.port} of {config.host} is in use; give another --port (0 is any free one)."
            ) from error
        if error.errno == errno.EACCES:
            raise EnvironmentProblem(f"No permission to listen on port {config.port}; give one above 1023.") from error
        raise UsageError(f"Cannot listen on {config.host}, port {config.port}: {error.strerror or error}.") from error
    return sock


class _Server(uvicorn.Server):
    """Signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Lifecycle:
    """Serves until told to stop: a first SIGTERM or SIGINT drains, a second stops at once."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.config = service.config
        self.server = _Server(
            uvicorn.Config(
                build_app(service),
                log_config=None,
                log_level="error",
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
            )
        )
        self.failure: Exception | None = None
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    async def run(self, sock: socket.socket) -> None:
        """Errors: what the start failed with, EngineDeadError; else the server was told to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        engine = asyncio.create_task(self._run_engine())
        try:
            await self.server.serve([sock])
        finally:
            engine.cancel()
            await asyncio.gather(engine, return_exceptions=True)
            await self.service.close()
        if self.failure is not None:
            raise self.failure

    def _on_signal(self, number: int) -> None:
        write_event("signal", name=signal.Signals(number).name, stops_now=self._stop.is_set())
        (self._stop_now if self._stop.is_set() else self._stop).set()

    async def _run_engine(self) -> None:
        """Start it, watch it, drain it; the HTTP server ends when this does."""
        try:
            starting = asyncio.create_task(self.service.start())
            if not await _first(starting, self._stop.wait()):
                return
            engine = starting.result()
            gc.collect()
            gc.freeze()
            write_event("ready", **limits(engine))
            if not await _first(asyncio.create_task(engine.died.wait()), self._stop.wait()):
                await self._drain(engine)
            if engine.died.is_set():
                self.service.phase = Phase.DEAD
                self.failure = EngineDeadError(engine.death)
                write_event("engine_died", message=engine.death)
                await self._cut()
        except Exception as error:
            self.service.phase = Phase.DEAD
            self.failure = error
        finally:
            self.server.should_exit = True

    async def _drain(self, engine: AsyncEngine) -> None:
        """Wait for every request that was accepted, wherever it is: in preparation, in the engine, on its way out."""
        self.service.phase = Phase.DRAINING
        requests, timeout = self.service.in_flight, self.config.shutdown_timeout
        write_event("draining", unfinished=len(requests), timeout_s=timeout)
        await _first(asyncio.create_task(requests.drain(timeout)), self._stop_now.wait(), engine.died.wait())
        write_event("cut" if requests else "drained", unfinished=len(requests))
        if requests and not engine.died.is_set():
            await engine.close()
            await self._cut()

    async def _cut(self) -> None:
        """Requests that the engine's end has not ended are answered 503."""
        if not await self.service.in_flight.drain(_LAST_ERRORS_SECONDS):
            self.service.in_flight.cancel()


async def _first(wanted: asyncio.Task[object], *others: object) -> bool:
    """Whether `wanted` was done before any of the others; what was not done is cancelled."""
    tasks = [wanted, *(asyncio.ensure_future(other) for other in others)]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return wanted.done()
    finally:
        for task in tasks:
            if not task.done():
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def limits(engine: AsyncEngine) -> dict[str, object]:
    """What the engine can hold, to be told once it is known."""
    info = engine.info
    num_tokens = info.num_pages * info.page_size
    return {
        "model": info.model,
        "device": info.device,
        "dtype": info.dtype,
        "startup_s": round(info.startup_seconds, 2),
        "kv_cache_tokens": num_tokens,
        "max_model_len": info.max_model_len,
        "full_length_requests": num_tokens // max(1, info.max_model_len),
        "max_num_seqs": info.max_num_seqs,
        "max_num_waiting": engine.config.max_num_waiting,
    }


def serve(engine_config: EngineConfig, config: ServerConfig, told: object = None) -> None:
    """Serve until a signal; `told` is called with the URL once the port is bound.

    Errors: of a model that is none, before that; of the start; EngineDeadError.
    """
    architecture_of(find_model(engine_config.model).hf_config)
    sock = bind(config)
    service = Service(engine_config, config)
    host = f"[{config.host}]" if ":" in config.host else config.host
    url = f"http://{host}:{sock.getsockname()[1]}"
    write_event("listening", url=url, models=service.model_names, api_key=config.api_key is not None)
    if callable(told):
        told(url)

    threads = Threads()
    exit_code = EXIT_NOT_PASSED

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(threads)
        await Lifecycle(service).run(sock)

    try:
        asyncio.run(run())
        exit_code = 0
    except FastKernelsError as error:
        exit_code = error.exit_code
        raise
    finally:
        threads.leave(exit_code)
