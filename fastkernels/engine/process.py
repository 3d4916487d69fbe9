"""The engine in a process of its own: requests in through a socket, steps, what they gave out through it.

Both ends are ours and the socket is an unnamed pair, so messages are pickled tuples: (kind, ...) behind their length.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastkernels.engine.preparation import Preparation
from fastkernels.engine.sampling_params import SamplingParamsError
from fastkernels.errors import EXIT_NOT_PASSED, FastKernelsError, RankError

if TYPE_CHECKING:
    from fastkernels.engine.config import EngineConfig
    from fastkernels.engine.core import EngineCore
    from fastkernels.engine.task_engine import TaskEngine

LENGTH = struct.Struct("<Q")
_CHUNK = 1 << 20
_PARENT_POLL_SECONDS = 0.5


def pack(message: tuple[Any, ...]) -> bytes:
    body = pickle.dumps(message, protocol=5)
    return LENGTH.pack(len(body)) + body


class Channel:
    """The engine's end: it never blocks a step; what the other end is slow to read is sent together later."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._received = bytearray()
        self._unsent = bytearray()
        self._outputs: list[Any] = []
        self._woken, self._waker = os.pipe()

    def wake(self) -> None:
        """End a `receive` that waits, or the next one. Of any thread."""
        os.write(self._waker, b"w")

    def receive(self, may_block: bool) -> list[tuple[Any, ...]]:
        """The messages that are there; waits for one, or for `wake`, when `may_block`.

        Errors: EOFError when the parent is gone.
        """
        messages = self._parse()
        while not messages:
            wait = None if may_block else 0
            writers = [self._socket] if self._has_unsent else []
            readers: list[Any] = [self._socket, self._woken]
            readable, writable, _ = select.select(readers, writers, [], wait)
            if writable:
                self.flush()
            if self._socket in readable:
                self._read()
                messages = self._parse()
            is_woken = self._woken in readable
            if is_woken:
                os.read(self._woken, _CHUNK)
            if is_woken or not may_block:
                break
        return messages

    def send(self, message: tuple[Any, ...]) -> None:
        self._queue_outputs()
        self._unsent += pack(message)
        self.flush()

    def tell(self, outputs: Sequence[Any]) -> None:
        self._outputs += outputs
        self.flush()

    def flush(self) -> None:
        if not self._unsent:
            self._queue_outputs()
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError) as error:
            raise EOFError from error

    def finish(self) -> None:
        """Send all that is left, waiting for the reader."""
        self._socket.setblocking(True)
        self._queue_outputs()
        self.flush()

    @property
    def _has_unsent(self) -> bool:
        return bool(self._unsent or self._outputs)

    def _queue_outputs(self) -> None:
        if self._outputs:
            self._unsent += pack(("outputs", self._outputs))
            self._outputs = []

    def _read(self) -> None:
        try:
            while data := self._socket.recv(_CHUNK):
                self._received += data
        except BlockingIOError:
            return
        except ConnectionResetError as error:
            raise EOFError from error
        raise EOFError

    def _parse(self) -> list[tuple[Any, ...]]:
        messages, start = [], 0
        while len(self._received) - start >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._received, start)
            end = start + LENGTH.size + size
            if len(self._received) < end:
                break
            messages.append(pickle.loads(memoryview(self._received)[start + LENGTH.size : end]))
            start = end
        del self._received[:start]
        return messages


class EngineLoop:
    """Takes messages between steps, and steps while there is work.

    A request with a grammar is checked in a thread first: the first one loads libraries, and each compiles.
    """

    def __init__(self, core: EngineCore | TaskEngine, channel: Channel) -> None:
        self.core, self.channel = core, channel
        self._preparation = Preparation(core.check, channel.wake)
        self._is_done = False
        self._failure: FastKernelsError | None = None

    def run(self) -> None:
        while not self._is_done:
            self.turn()

    def fail(self, failure: FastKernelsError) -> None:
        """The next turn raises it, which an idle loop takes at once. Of any thread."""
        self._failure = failure
        self.channel.wake()

    def turn(self) -> None:
        """Take what has come, waiting for something when there is no work, then one step."""
        for message in self.channel.receive(may_block=not self.core.has_unfinished):
            self.handle(message)
        if self._failure is not None:
            raise self._failure
        for request, error in self._preparation.take():
            self._add(request, error)
        if self.core.has_unfinished:
            self.channel.tell(self.core.step())

    def handle(self, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == "add":
            for request in rest[0]:
                params = getattr(request, "params", None)
                if params is not None and params.structured_outputs is not None:
                    self._preparation.begin(request)
                else:
                    self._add(request)
        elif kind == "abort":
            self._preparation.drop(rest[0])
            self.core.abort(rest[0])
        elif kind == "call":
            call_id, name = rest
            self.channel.send(("answer", call_id, getattr(self.core, name)()))
        else:
            self._is_done = True

    def _add(self, request: Any, error: Exception | None = None) -> None:
        try:
            if error is not None:
                raise error
            self.core.add(request)
        except RankError:  # of no request's fault
            raise
        except Exception as refusal:  # whatever a request does to `add`, the others go on while the device does
            self.channel.send(("refused", request.request_id, *_describe(refusal)))
            if not isinstance(refusal, FastKernelsError):
                self.core.check_device()


def _describe(error: Exception) -> tuple[str, str | None, str]:
    """Whose fault it is, the field, and the message."""
    if isinstance(error, SamplingParamsError):
        return "parameter", error.parameter, str(error)
    if isinstance(error, FastKernelsError):
        return "unsupported", None, str(error)
    traceback.print_exception(error)
    return "internal", None, f"{type(error).__name__}: {error}"


def _follow(parent_id: int) -> None:
    """End this process when its parent is gone, whatever the step is doing."""

    def watch() -> None:
        while os.getppid() == parent_id:
            time.sleep(_PARENT_POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _build_core(config: EngineConfig) -> EngineCore | TaskEngine:
    """By the kind of the model."""
    from fastkernels.engine.model_source import find_model
    from fastkernels.registry import Kind, architecture_of

    if architecture_of(find_model(config.model).hf_config).kind is Kind.AUTOREGRESSIVE:
        from fastkernels.engine.core import EngineCore

        return EngineCore(config)
    from fastkernels.engine.task_engine import TaskEngine

    return TaskEngine(config)


def main(fd: int, parent_id: int) -> None:
    """Build the engine that the first message describes, and serve it until the parent says or is gone."""
    _follow(parent_id)
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal's or a supervisor's go to the parent too: it decides
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=fd))
    try:
        ((_, config),) = channel.receive(may_block=True)
        core = _build_core(config)
    except EOFError:
        return
    except Exception as error:
        _report_fatal(channel, error)
    gc.collect()
    gc.freeze()
    try:
        channel.send(("ready", core.info, core.tokenizer.to_str()))
        loop = EngineLoop(core, channel)
        core.when_failed(loop.fail)
        loop.run()
    except EOFError:
        pass
    except Exception as error:
        _report_fatal(channel, error)
    core.close()


def _report_fatal(channel: Channel, error: Exception) -> None:
    """Tell the parent and end; a mistake of the user's needs no traceback."""
    is_known = isinstance(error, FastKernelsError)
    if not is_known:
        traceback.print_exception(error)
    message = str(error) if is_known else f"{type(error).__name__}: {error}"
    exit_code = error.exit_code if isinstance(error, FastKernelsError) else EXIT_NOT_PASSED
    try:
        channel.send(("fatal", exit_code, message))
        channel.finish()
    except (EOFError, OSError):
        pass
    sys.stderr.flush()
    os._exit(exit_code)  # threads and a broken device must not hold it
