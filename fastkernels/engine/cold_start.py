"""A start that finds no kernels in Triton's cache: other processes compile them while the weights come.

Warming up launches every kernel that a step may ask for, and each is compiled at its first launch, one after another.
Here a helper (`kernel_compiler`) is started ahead of that. It needs neither the GPU nor weights, and the engine then
finds its kernels in Triton's cache on disk. Whatever befalls the helper, they are compiled later, as ever.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from fastkernels.distributed.tensor_parallel import tp_rank
from fastkernels.engine.config import EngineConfig, LoadFormat, Warm
from fastkernels.engine.model_source import find_model
from fastkernels.env import environment_without_gpu, triton_interpreted
from fastkernels.errors import FastKernelsError
from fastkernels.kernels.backend import HAS_TRITON, Gpu, gpu_of

logger = logging.getLogger(__name__)

MOST_PROCESSES = 8
"""Each compiles a kernel at a time, in some hundred megabytes of the host's memory."""

_PATIENCE_SECONDS = 30.0
"""Without a word from the helper, whose imports take a few seconds, as does the longest kernel."""

_FAILURES_TOLD = 3

_COMMAND = (sys.executable, "-m", "fastkernels.engine.kernel_compiler")

_SOURCES = ("distributed", "engine", "kernels", "tasks/baseline", "tasks/configs")
"""Of this package, besides the files on top: what decides which kernels are launched, and what they are."""


@dataclass(frozen=True)
class Order:
    """What the helper is told. cache_dir: Triton's; parent: the process without which it ends."""

    config: EngineConfig
    gpu: Gpu
    cache_dir: str
    num_processes: int
    parent: int


class KernelHelper:
    """The helper, seen from the engine: it says a line for each kernel that is found, compiled, or fails to be."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.num_found = self.num_compiled = 0
        self.failures: list[str] = []
        self._is_done = False
        self._started = time.perf_counter()
        self._unread = b""
        self._process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment_without_gpu(),
            start_new_session=True,  # a group of its own, to be ended as one
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(pickle.dumps(order))
            self._process.stdin.close()

    def wait(self, patience: float = _PATIENCE_SECONDS) -> bool:
        """Until it is done or ends, or has said nothing for so many seconds; then it is ended. Whether it was done.

        What came of it goes to the log, in one line.
        """
        stalled = False
        while not stalled and (text := self._read(patience)) != b"":
            stalled = text is None
        self.end()
        seconds = time.perf_counter() - self._started
        came = f"{self.num_compiled} of {self.num_found} kernels compiled by up to {self.order.num_processes} processes"
        if self._is_done and not self.failures:
            logger.info("%s in %.1f s", came, seconds)
        else:
            unlike = list(dict.fromkeys(self.failures))[:_FAILURES_TOLD]
            why = unlike or [f"nothing for {patience} s" if stalled else f"exit {self._process.returncode}"]
            logger.warning("%s in %.1f s, the others when they are launched: %s", came, seconds, "; ".join(why))
        return self._is_done

    def end(self) -> None:
        """End it with all that it started."""
        if self._process.returncode is None:  # nobody else has its number as long as nobody has waited for it
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self, patience: float) -> bytes | None:
        """What it has said since; b"" when it has ended, None when it says nothing."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], patience)
        if not readable:
            return None
        text = os.read(self._process.stdout.fileno(), 1 << 16)
        *lines, self._unread = (self._unread + text).split(b"\n")
        for line in lines:
            self._note(line.decode(errors="replace"))
        return text

    def _note(self, line: str) -> None:
        what, _, rest = line.partition(" ")
        if what == "found":
            self.num_found += 1
        elif what == "compiled":
            self.num_compiled += 1
        elif what == "failed":
            self.failures.append(rest)
        elif what == "done":
            self._is_done = True


class ColdStart:
    """The start of an engine, which has a helper where it needs one."""

    def __init__(self, helper: KernelHelper | None = None) -> None:
        self.helper = helper

    def wait_for_kernels(self) -> None:
        """Before the first launch."""
        if self.helper is not None:
            self.helper.wait()


@contextmanager
def cold_start(config: EngineConfig, device: torch.device) -> Iterator[ColdStart]:
    """Around all that makes an engine ready: a helper compiles for it, unless an engine like it has started before.

    That one has, is kept as an empty file in Triton's cache: whoever empties that takes it along.
    """
    marker = _marker(config, device)
    if marker is None or marker.exists():
        yield ColdStart()
        return
    helper = _helper(config, device, str(marker.parents[1]))
    try:
        yield ColdStart(helper)
    finally:
        if helper is not None:
            helper.end()
    with suppress(OSError):
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def num_processes() -> int:
    """That compile at the same time."""
    return min(MOST_PROCESSES, len(os.sched_getaffinity(0)))


def _may_compile_ahead(config: EngineConfig, device: torch.device) -> bool:
    """One rank of several does it for all, which need the same; ROCm's compiler is not there without its GPU."""
    is_wanted = device.type == "cuda" and config.warm is Warm.FULL and num_processes() > 1 and tp_rank() == 0
    return is_wanted and HAS_TRITON and not triton_interpreted() and not torch.version.hip


def _helper(config: EngineConfig, device: torch.device, cache_dir: str) -> KernelHelper | None:
    order = Order(replace(config, device="meta"), gpu_of(device), cache_dir, num_processes(), os.getpid())
    try:
        return KernelHelper(order)
    except OSError as error:
        logger.warning("kernels are compiled when they are launched: %s", error)
        return None


def _marker(config: EngineConfig, device: torch.device) -> Path | None:
    """None where nothing is to be compiled ahead."""
    if not _may_compile_ahead(config, device):
        return None
    from triton import knobs

    try:
        digest = start_digest(config, find_model(config.model).hf_config, gpu_of(device))
    except FastKernelsError:  # to be told by who builds the model
        return None
    except Exception as error:
        logger.warning("kernels are compiled when they are launched: %s: %s", type(error).__name__, error)
        return None
    return Path(knobs.cache.dir) / "fastkernels" / digest


def start_digest(config: EngineConfig, model: Mapping[str, object], gpu: Gpu) -> str:
    """Names starts that launch the same kernels. model: its config.json."""
    import triton
    from triton._C.libtriton import get_cache_invalidating_env_vars

    alike = replace(
        config, model="", tokenizer=None, load_format=LoadFormat.AUTO, seed=0, device=None, max_num_waiting=1,
        enable_prefix_caching=True,
    )  # fmt: skip
    versions = (triton.__version__, torch.__version__, sorted(get_cache_invalidating_env_vars().items()))
    told = repr((_source_digest(), versions, alike, sorted(model.items()), gpu))
    return hashlib.sha256(told.encode()).hexdigest()


@lru_cache
def _source_digest() -> str:
    package = Path(__file__).parents[1]
    files = [*package.glob("*.py"), *(path for name in _SOURCES for path in (package / name).rglob("*.py"))]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
