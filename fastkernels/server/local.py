"""A server of this machine for as long as a block runs: for examples, tests and load."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from fastkernels.errors import EnvironmentProblem

_POLL_SECONDS = 0.05
_LAST_WORDS_SECONDS = 10
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""This machine's own address is behind no proxy."""


@dataclass
class LocalServer:
    """`url` has no path; `log` is what the server wrote to stderr, one JSON a line."""

    url: str
    process: subprocess.Popen[str]
    log_file: IO[str]

    @property
    def log(self) -> str:
        self.log_file.seek(0)
        return self.log_file.read()

    def wait_until_ready(self, timeout: float) -> None:
        """Errors: EnvironmentProblem with the server's own words when it ends or takes longer."""
        if not self.url:  # it has refused its options
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_LAST_WORDS_SECONDS)
            timeout = 0
        end = time.monotonic() + timeout
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError):  # URLError and a read's TimeoutError are such
                _opener.open(f"{self.url}/ready", timeout=5).close()
                return
            time.sleep(_POLL_SECONDS)
        raise EnvironmentProblem(f"The server is not ready: {self.log[-2000:]}")


@contextlib.contextmanager
def running_server(
    model: str = "tiny-llama",
    *options: str,
    ready_timeout: float = 300,
    stop_timeout: float = 40,
    program: Sequence[str] = ("-m", "fastkernels"),
) -> Iterator[LocalServer]:
    """`fastkernels serve MODEL OPTIONS` on a free port, ready; ended by SIGTERM. program: what Python runs as it."""
    command = [sys.executable, *program, "serve", model, "--port", "0", *options]
    with tempfile.TemporaryFile("a+") as log_file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log_file, text=True)
        try:
            assert process.stdout is not None
            server = LocalServer(process.stdout.readline().rpartition(" ")[2].strip(), process, log_file)
            server.wait_until_ready(ready_timeout)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(stop_timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()  # type: ignore[union-attr]
