"""An oracle's model and ours with the same weights in one process: how far apart their answers are, and their times."""

from __future__ import annotations

import contextlib
import gc
import math
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._inductor import async_compile

from fastkernels.dtypes import default_dtype, find_dtype
from fastkernels.harness.telemetry import utilization
from fastkernels.oracles.oracle import Answer, Load, Oracle, Request
from fastkernels.oracles.our_side import OurSide, our_side
from fastkernels.oracles.side_by_side import relative_error
from fastkernels.oracles.turns import Pauses
from fastkernels.registry import Architecture
from fastkernels.scoring.discrepancy import compare
from fastkernels.scoring.statistics import ratio_interval
from fastkernels.weights import load_weights

OURS, LIBRARY, COMPILED = "ours", "library", "library_compiled"
_LEAST_ROW = 1e-2
"""Of the longest row; over 1 / 255, by which a pixel may differ where a Gaussian is there for one side alone."""


@dataclass(frozen=True)
class Settings:
    """rounds take turns; in each, calls are repeated to last round_seconds. compile_mode: torch.compile's, or None.

    compile_seconds: a way of the library that is not ready by then is left out, of the loads behind too. turns: a
    folder by which processes on one device agree that only one of them measures, while the others are stopped.
    """

    device: str = "cuda"
    dtype: str = "bfloat16"
    compile_mode: str | None = "reduce-overhead"
    compile_seconds: float = 200.0
    rounds: int = 10
    round_seconds: float = 0.3
    seed: int = 1
    enforce_eager: bool = False
    turns: Path | None = None


class Measurement:
    """Both models of one architecture, built once.

    Errors: those of the library and of our models; torch.OutOfMemoryError when they do not fit.
    """

    def __init__(self, entry: Architecture, oracle: Oracle, sizes: Mapping[str, Any], settings: Settings) -> None:
        self.entry, self.oracle, self.sizes, self.settings = entry, oracle, sizes, settings
        self.device = torch.device(settings.device)
        self._turns = None if settings.turns is None else Pauses(settings.turns)
        dtype = find_dtype(settings.dtype)
        with default_dtype(dtype), self.device:
            self.theirs = oracle.build(sizes, seed=settings.seed).requires_grad_(False)
        with tempfile.TemporaryDirectory() as folder:
            config = oracle.save_config(self.theirs, Path(folder))
            self.ours: OurSide = our_side(
                entry, oracle, sizes, config, settings.dtype, self.device, settings.enforce_eager
            )
        load_weights(self.ours.model, oracle.tensors(self.theirs))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # an engine's steps have a stream that does not wait for this one
        ways = oracle.modes(self.theirs, settings.compile_mode)
        # Whichever fails, what was compiled before it is forgotten: the compiled one comes last.
        self._ways = dict(sorted(ways.items(), key=lambda way: way[0] == COMPILED))
        self._built: dict[str, Any] = {}
        self._given_up: dict[str, dict[str, Any]] = {}

    def measured(self, load: Load, num: int) -> dict[str, Any]:
        """One load of `num` requests at once: parity, medians in ms, ratios with intervals, every sample.

        A way of the library that fails is a record of its error's first line; ours and the plain library must run.
        """
        requests = self.oracle.load(self.sizes, num, load.name)
        try:
            with torch.inference_mode():
                return {"load": load.name, "batch": num, "is_whole": load.is_whole, **self._measured(load, requests)}
        finally:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def costs(self, load: Load, num: int) -> dict[str, Any]:
        """What the GPU does in a call of ours. After everything is measured: a profiler may leave the host slower."""
        with torch.inference_mode():
            call = self.ours.call(load, self.oracle.load(self.sizes, num, load.name))
            for _ in range(2):
                call()
            with self._alone():
                return gpu_costs(call)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with contextlib.nullcontext() if self._turns is None else self._turns.alone():
            if self._turns is not None:
                wait_until_idle(self.device)
            yield

    def _measured(self, load: Load, requests: Sequence[Request]) -> dict[str, Any]:
        calls = {OURS: self.ours.call(load, requests)}
        outputs = {OURS: copied(calls[OURS]())}
        modes: dict[str, dict[str, Any]] = {}
        for name in self._ways:
            if name in self._given_up:
                modes[name] = self._given_up[name]
                continue
            started = time.monotonic()
            try:
                with time_limit(None if name == LIBRARY else self.settings.compile_seconds):
                    call = self._their_call(load, requests, self._way(name))
                    for _ in range(1 if name == LIBRARY else 3):  # what compiles or captures does it in the first calls
                        outputs[name] = copied(call())
                    if self.device.type == "cuda":
                        torch.cuda.synchronize(self.device)  # an error of the device is this way's
            except (Exception, NotReady) as error:
                if name == LIBRARY:
                    raise
                modes[name] = {"error": first_line(error)}
                if isinstance(error, NotReady):
                    self._given_up[name] = modes[name]
                stop_compiling()
                self._built.clear()
                continue
            calls[name] = call
            modes[name] = {"first_calls_s": round(time.monotonic() - started, 1)}
        parity = self._parity(load, requests, outputs)
        with self._alone():
            samples = self._samples(calls)
        return {
            "parity": parity,
            "modes": modes,
            "ms": {name: round(statistics.median(times), 4) for name, times in samples.items()},
            "ratios": {name: ratio(times, samples[OURS]) for name, times in samples.items() if name != OURS},
            "samples_ms": {name: [round(t, 5) for t in times] for name, times in samples.items()},
        }

    def _way(self, name: str) -> Any:
        """Built once: what was compiled for a shape is there when it comes again."""
        if name not in self._built:
            self._built[name] = self._ways[name]()
        return self._built[name]

    def _their_call(self, load: Load, requests: Sequence[Request], model: Any) -> Callable[[], Answer]:
        if load.is_whole:
            return lambda: self.oracle.run(model, requests)
        batch = self.oracle.batch(model, [self.ours.prepare(request) for request in requests])
        return lambda: self.oracle.forward(model, batch)

    def _parity(self, load: Load, requests: Sequence[Request], outputs: Mapping[str, Answer]) -> dict[str, Any]:
        """By output and side: how far from the library in float32 where that fits too, else in the same dtype."""
        exact, against = outputs[LIBRARY], "library in the same dtype"
        some = next(self.theirs.parameters(), None)
        if some is None or some.dtype is torch.float32:
            against = "library in float32"
        elif _free_bytes(self.device) > 1.3 * 4 * sum(p.numel() for p in self.theirs.parameters()):
            with contextlib.suppress(torch.OutOfMemoryError):
                exact, against = copied(self._their_call(load, requests, self._wide())()), "library in float32"
        found: dict[str, Any] = {"against": against}
        for side, answer in outputs.items():
            given, paired = self.oracle.paired(answer, exact)
            for name, wanted in paired.items():
                found.setdefault(name, {})[side] = distance(given[name], wanted)
        if load.is_whole:
            found |= self.oracle.further(self.theirs, requests, outputs[OURS])
        by_family = self._by_family(outputs[OURS], exact, len(requests))
        return found | ({} if by_family is None else {"discrepancy": by_family})

    def _wide(self) -> nn.Module:
        """The library's model with the same weights in float32; what it derives from its sizes was never rounded."""
        with default_dtype(torch.float32), self.device:
            wide = self.oracle.build(self.sizes, seed=self.settings.seed).requires_grad_(False)
        wide.load_state_dict(self.theirs.state_dict())
        return wide

    def _by_family(self, ours: Answer, exact: Answer, num: int) -> float | None:
        """The median over requests of the discrepancy in the family's measure, where what it compares is here."""
        names = self.entry.answers
        if not names or any(name not in exact or len(exact[name]) != num for name in names):
            return None
        sides = [[{n: _array(answer[n][i]) for n in names} for i in range(num)] for answer in (exact, ours)]
        try:
            return float(f"{statistics.median(compare(self.entry.family, names, *sides).values):.3g}")
        except ValueError:  # a reference that cannot be compared with
            return None

    def _samples(self, calls: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """Milliseconds a call, by side: rounds that take turns, each of calls one behind another."""
        counts = {}
        for name, call in calls.items():
            for _ in range(2):
                once = ms_a_call(call, 1, self.device)
            counts[name] = max(1, round(self.settings.round_seconds * 1e3 / once))
        samples: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(self.settings.rounds):
            for name in list(calls) if number % 2 == 0 else list(calls)[::-1]:
                samples[name].append(ms_a_call(calls[name], counts[name], self.device))
        return samples


def wait_until_idle(device: torch.device, most_seconds: float = 3.0) -> None:
    """Until what other processes gave the device is done, as it says; a second where it does not tell."""
    deadline = time.monotonic() + most_seconds
    while time.monotonic() < deadline:
        time.sleep(0.25)  # what it tells is of a sixth of a second
        percent = utilization(device)
        if percent is None:
            return time.sleep(0.75)
        if percent == 0:
            return None
    return None


def gpu_costs(call: Callable[[], Any], most: int = 12) -> dict[str, Any]:
    """Of one call, in microseconds: kernels and copies of the GPU by the time of all their launches, the longest first.

    busy_us: of all; a call that takes longer waits for the host. Errors of the profiler are the record.
    """
    try:
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        found: dict[str, list[float]] = {}
        for event in profile.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                found.setdefault(event.name, []).append(event.time_range.elapsed_us())
    except Exception as error:
        return {"error": first_line(error)}
    costs = sorted(((sum(times), len(times), name) for name, times in found.items()), reverse=True)
    kernels = [{"name": n[:120], "us": round(us, 1), "launches": num} for us, num, n in costs[:most]]
    return {
        "busy_us": round(sum(us for us, _, _ in costs), 1),
        "launches": sum(n for _, n, _ in costs),
        "kernels": kernels,
    }


def stop_compiling() -> None:
    """Forget what was compiled, and end the processes that still compile: they would slow what is measured next."""
    torch.compiler.reset()
    for pool in list(async_compile._pool_set):
        process = getattr(pool, "process", None)
        if isinstance(process, subprocess.Popen):
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
    async_compile.after_fork()


class NotReady(BaseException):
    """No Exception: a compiler that tries another way after one would go on."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Errors: NotReady inside when it takes longer, where this is the main thread."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    is_over = False

    def stop(number: int, frame: Any) -> None:
        if not is_over:
            raise NotReady(f"not ready after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)  # again, in case it was caught
    try:
        yield
    finally:
        is_over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def copied(answer: Answer) -> dict[str, Tensor]:
    """Compiled functions and graphs write the next answer where this one is."""
    return {name: t.clone() for name, t in answer.items()}


def _array(tensor: Tensor) -> Any:
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Over 1: ours is faster; with the 95 % interval over rounds."""
    interval = ratio_interval([[math.log(a / b) for a, b in zip(theirs, ours, strict=True)]])
    return {name: round(getattr(interval, name), 4) for name in ("ratio", "low", "high")}


def distance(given: Tensor, wanted: Tensor) -> dict[str, float]:
    """Of numbers: the least cosine over rows, the rms of the error over the values', the largest error over the largest
    value; of integers: the share that is equal.

    A row of next to nothing has no direction: one that in both is no longer than a hundredth of the longest wanted one
    counts as equal, and its error is in the other two figures.
    """
    given, wanted = given.to(wanted.device), wanted
    if not wanted.is_floating_point():
        return {"share_equal": round(float((given == wanted).float().mean()) if wanted.numel() else 1.0, 6)}
    a, b = (t.double().flatten(0, -2) if t.dim() > 1 else t.double()[None] for t in (given, wanted))
    norm, lengths = float(b.norm()), b.norm(dim=-1)
    is_nothing = torch.maximum(a.norm(dim=-1), lengths) <= _LEAST_ROW * lengths.max()
    cosines = torch.where(is_nothing, 1.0, nn.functional.cosine_similarity(a, b))
    return {
        "least_cosine": round(float(cosines.min()), 7),
        "relative_rms": float(f"{float((a - b).norm()) / max(norm, 1e-30):.3g}"),
        "relative_max": float(f"{relative_error(given, wanted):.3g}"),
    }


def _free_bytes(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


def ms_a_call(call: Callable[[], Any], num_calls: int, device: torch.device) -> float:
    """On a GPU by its events, so that launches which run ahead of it count once; whole requests end on the host."""
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(num_calls):
            call()
        return (time.perf_counter() - started) * 1e3 / num_calls
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(num_calls):
        call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / num_calls
