"""The engine as an asyncio program sees it: it runs in a process of its own, and its outputs are awaited."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from os import getpid
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray
from tokenizers import Tokenizer

import fastkernels
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.multimodal import Media
from fastkernels.engine.output_processor import OutputKind, OutputProcessor, RequestState
from fastkernels.engine.outputs import EngineInfo, EngineStats, FinishReason, RequestOutput, StepOutput
from fastkernels.engine.process import LENGTH, pack
from fastkernels.engine.public_ids import PublicIds
from fastkernels.engine.sampling_params import SamplingParams, SamplingParamsError
from fastkernels.engine.text import check_text
from fastkernels.errors import FastKernelsError, UnsupportedError

_START = """import sys
sys.path.insert(0, sys.argv[1])
from fastkernels.engine.process import main
main(int(sys.argv[2]), int(sys.argv[3]))"""
_CLOSE_SECONDS = 5.0
_POLL_SECONDS = 0.01
_INLINE_CHARACTERS = 20_000
_INLINE_TEXTS = 64
"""Longer or more texts are tokenised in a thread, so that the others' tokens are not held up."""
_BATCH_TEXTS = 64
"""An encoding holds some 100 bytes for each token: those of a long list are not held all at once."""


class EngineDeadError(FastKernelsError):
    """The engine's process is gone, and with it every request."""


class EngineStartError(FastKernelsError):
    """The engine could not be built; `exit_code` is that of the reason."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RequestFailedError(FastKernelsError):
    """The engine could not go on with this request; the others go on."""


class OverloadedError(FastKernelsError):
    """Too many requests wait; `retry_after` seconds is about how long their first tokens take."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Observer(Protocol):
    """Is told when tokens come, whoever reads them when."""

    def first_token(self, seconds: float) -> None: ...
    def next_token(self, seconds: float) -> None: ...


class _Running:
    """One generate() call: its request, and the bell that rings when there is news."""

    def __init__(self, state: RequestState) -> None:
        self.state = state
        self.bell = asyncio.Event()
        self.started = self.last = time.perf_counter()
        self.has_token = False
        self.error: Exception | None = None


class AsyncEngine:
    """An engine in another process. Build one with `start`; every call belongs to the loop that did.

    died: set once the process is gone without having been asked to go.
    """

    def __init__(
        self,
        config: EngineConfig,
        process: subprocess.Popen[bytes],
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        ready: tuple[EngineInfo, str],
        observer: Observer | None,
    ) -> None:
        self.config, self.process, self.info = config, process, ready[0]
        self.tokenizer = Tokenizer.from_str(ready[1])
        self.processor = OutputProcessor(self.tokenizer, self.info.eos_token_ids)
        self.died = asyncio.Event()
        self.death = ""
        self._reader, self._writer = streams
        self._observer = observer
        self._ids = PublicIds()
        self._running: dict[str, _Running] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._call_ids = itertools.count()
        self._num_waiting = 0
        self._wait_seconds = 0.0
        self._is_closing = False
        self._task = asyncio.get_running_loop().create_task(self._receive())

    @classmethod
    async def start(cls, config: EngineConfig, observer: Observer | None = None) -> AsyncEngine:
        """Errors: EngineStartError with the message and the exit code of what went wrong."""
        ours, theirs = socket.socketpair()
        root = str(Path(fastkernels.__file__).parents[1])
        command = [sys.executable, "-c", _START, root, str(theirs.fileno()), str(getpid())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            writer.write(pack(("start", config)))
            kind, *rest = await _read(reader)
        except (EOFError, ConnectionError) as error:
            writer.close()
            raise EngineStartError(
                f"The engine's process ended before it was ready ({await _end(process)}).", 1
            ) from error
        except BaseException:
            writer.close()
            process.kill()
            process.wait()
            raise
        if kind == "fatal":
            writer.close()
            await _end(process)
            raise EngineStartError(rest[1], rest[0])
        if rest[0].kind != "autoregressive":
            from fastkernels.engine.task_client import AsyncTaskEngine  # which is made of this class

            return AsyncTaskEngine(config, process, (reader, writer), (rest[0], rest[1]), observer)
        return cls(config, process, (reader, writer), (rest[0], rest[1]), observer)

    @property
    def is_alive(self) -> bool:
        return not self._is_closing and not self.died.is_set() and self.process.poll() is None

    @property
    def num_unfinished(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Answers that have no first token yet."""
        return self._num_waiting

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return (await self.encode_all([text], add_special_tokens))[0]

    async def encode_all(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each; what takes long is done in a thread. Errors: UsageError for a text that is not Unicode."""
        for text in texts:
            check_text(text, "prompt")
        if len(texts) <= _INLINE_TEXTS and sum(map(len, texts)) <= _INLINE_CHARACTERS:
            return [self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids for text in texts]
        return await asyncio.to_thread(self._encode_many, texts, add_special_tokens)

    def _encode_many(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        parts = (texts[start : start + _BATCH_TEXTS] for start in range(0, len(texts), _BATCH_TEXTS))
        batch = self.tokenizer.encode_batch
        return [one.ids for part in parts for one in batch(part, add_special_tokens=add_special_tokens)]

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        request_id: str,
        kind: OutputKind = OutputKind.CUMULATIVE,
        prompt_text: str | None = None,
        is_embedding: bool = False,
        media: Media | None = None,
        encoder_input: NDArray[Any] | None = None,
    ) -> AsyncGenerator[RequestOutput]:
        """Outputs as they come; what comes while nobody reads is told together. Leaving early aborts the request.

        request_id: what `abort` and the outputs name it by; calls may share one.
        Errors: SamplingParamsError and UnsupportedError for what can never run, OverloadedError, EngineDeadError.
        """
        tokens = await self.encode(prompt) if isinstance(prompt, str) else prompt
        text = prompt if isinstance(prompt, str) else prompt_text
        running = self._add(request_id, text, tokens, params, is_embedding, media, encoder_input)
        state, bell = running.state, running.bell
        try:
            while True:
                await bell.wait()
                bell.clear()
                if running.error is not None:
                    raise running.error
                if state.error is not None:
                    raise RequestFailedError(state.error)
                if state.is_finished:
                    yield state.output(kind)
                    return
                if kind is not OutputKind.FINAL_ONLY:
                    output = state.output(kind)
                    if output.outputs:
                        yield output
        finally:
            self._leave(running)

    async def embed(self, prompt: str | Sequence[int], request_id: str) -> RequestOutput:
        """The prompt's embedding."""
        params = SamplingParams(max_tokens=1)
        async for output in self.generate(prompt, params, request_id, OutputKind.FINAL_ONLY, is_embedding=True):
            return output
        raise EngineDeadError(self.death)

    def abort(self, request_ids: Iterable[str]) -> list[str]:
        """End every call of these ids; their readers get what there is, with finish_reason ABORT. Returns those of the
        ids that were running."""
        known = self._ids.open_calls(request_ids)
        for engine_id in itertools.chain.from_iterable(known.values()):
            running = self._running[engine_id]
            self._end_at_engine(running)
            running.bell.set()
        return list(known)

    async def stats(self) -> EngineStats:
        return await self._call("stats")

    async def kernels(self) -> list[dict[str, Any]]:
        return await self._call("kernels")

    async def close(self) -> None:
        """End the process; what still runs fails."""
        if self._is_closing:
            return
        self._is_closing = True
        self._fail("The server is shutting down.")
        try:
            self._writer.write(pack(("shutdown",)))
            await _end(self.process)
        finally:
            self._task.cancel()
            self._writer.close()

    def _add(
        self,
        request_id: str,
        prompt: str | None,
        tokens: Sequence[int],
        params: SamplingParams,
        is_embedding: bool,
        media: Media | None,
        encoder_input: NDArray[Any] | None,
    ) -> _Running:
        if not self.is_alive:
            raise EngineDeadError(self.death or "The engine is not running.")
        limit = self.config.max_num_waiting
        if params.n > limit:
            raise UnsupportedError(f"n is {params.n}; at most {limit} answers may wait (max_num_waiting).")
        if self._num_waiting + params.n > limit:
            raise OverloadedError(
                f"{self._num_waiting} requests wait; at most {limit} may (max_num_waiting). Try again later.",
                min(60, max(1, round(self._wait_seconds))),
            )
        engine_id = self._ids.begin(request_id)
        requests = self.processor.add(engine_id, prompt, tokens, params, is_embedding, media, encoder_input)
        running = self._running[engine_id] = _Running(self.processor.state(engine_id))
        running.state.public_id = request_id
        self._num_waiting += params.n
        self._writer.write(pack(("add", requests)))
        return running

    def _leave(self, running: _Running) -> None:
        """The reader is done with it, finished or not."""
        engine_id = running.state.request_id
        del self._running[engine_id]
        self._ids.end(running.state.public_id or "", engine_id)
        self._end_at_engine(running)
        self._num_waiting -= sum(not answer.has_started for answer in running.state.answers)

    def _end_at_engine(self, running: _Running) -> None:
        open_ids = self.processor.abort(running.state.request_id)
        if open_ids and self.is_alive:
            self._writer.write(pack(("abort", open_ids)))

    async def _call(self, name: str) -> Any:
        if not self.is_alive:
            raise EngineDeadError(self.death or "The engine is not running.")
        call_id = next(self._call_ids)
        future = self._calls[call_id] = asyncio.get_running_loop().create_future()
        self._writer.write(pack(("call", call_id, name)))
        try:
            return await future
        finally:
            self._calls.pop(call_id, None)

    async def _receive(self) -> None:
        message = ""
        try:
            while True:
                kind, *rest = await _read(self._reader)
                if kind == "outputs":
                    self._on_outputs(rest[0])
                elif kind == "refused":
                    self._on_refused(*rest)
                elif kind == "answer":
                    future = self._calls.get(rest[0])
                    if future is not None and not future.done():
                        future.set_result(rest[1])
                else:
                    message = rest[1]
        except (EOFError, ConnectionError):
            how = await _end(self.process)
        if not self._is_closing:
            self.death = f"The engine's process ended ({how}). {message}".rstrip()
            self.died.set()
            self._fail(self.death)

    def _on_outputs(self, outputs: list[StepOutput]) -> None:
        now = time.perf_counter()
        changed, to_abort = self.processor.update(outputs)
        if to_abort:
            self._writer.write(pack(("abort", to_abort)))
        for state in changed:
            running = self._running.get(state.request_id)
            if running is None:
                continue
            self._time(running, now)
            running.bell.set()

    def _time(self, running: _Running, now: float) -> None:
        for answer in running.state.answers:
            if not answer.has_started and (answer.token_ids or answer.finish_reason is not None):
                answer.has_started = True
                self._num_waiting -= 1
        if running.has_token:
            if self._observer is not None:
                self._observer.next_token(now - running.last)
        else:
            running.has_token = True
            seconds = now - running.started
            self._wait_seconds += 0.1 * (seconds - self._wait_seconds)
            if self._observer is not None:
                self._observer.first_token(seconds)
        running.last = now

    def _on_refused(self, engine_id: str, fault: str, parameter: str | None, message: str) -> None:
        state = self.processor.find(engine_id)
        running = self._running.get(state.request_id) if state is not None else None
        if running is None:
            return
        if fault == "parameter":
            running.error = SamplingParamsError(parameter or "", message)
        else:
            running.error = (UnsupportedError if fault == "unsupported" else RequestFailedError)(message)
        running.bell.set()

    def _fail(self, message: str) -> None:
        for running in self._running.values():
            self.processor.abort(running.state.request_id, FinishReason.ERROR)
            running.error = running.error or EngineDeadError(message)
            running.bell.set()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(EngineDeadError(message))


async def _read(reader: asyncio.StreamReader) -> tuple[Any, ...]:
    (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    return pickle.loads(await reader.readexactly(size))


async def _end(process: subprocess.Popen[bytes]) -> str:
    """Wait for the process, and end it when it does not by itself; how it ended."""
    end = time.monotonic() + _CLOSE_SECONDS
    while (code := process.poll()) is None:  # not in a thread: those may all be at work on requests
        if time.monotonic() > end:
            process.kill()
        await asyncio.sleep(_POLL_SECONDS)
    return f"signal {-code}" if code < 0 else f"exit code {code}"
