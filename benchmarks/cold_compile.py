"""How long a start with an empty Triton cache is at compiling: in a row, and in several processes.

    python benchmarks/cold_compile.py --out benchmarks/results/sm90/cold_compile.json
    python benchmarks/cold_compile.py --model gpt-oss-20b --processes 2

Needs no GPU: what an engine launches until it is ready is found on tensors without data, and compiled for an H200.
Every way begins with an empty cache, in a process of its own. Beside the clock's seconds stand those of the cores,
which a machine that others use too does not change as much. What so many processes would take is reckoned from the
latter: kernels come when the search finds them, and go to the process that is free first. It is no measurement.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import psutil

from fastkernels.bench.environment import environment
from fastkernels.engine.cold_start import KernelHelper, Order
from fastkernels.engine.config import EngineConfig, Warm
from fastkernels.kernels.ahead import H200

T = TypeVar("T")
RECKONED = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Spent:
    """seconds: by the clock; core_seconds: of this process and those that it has waited for."""

    seconds: float
    core_seconds: float


class Timer:
    def __init__(self) -> None:
        self._clock, self._cores = time.perf_counter(), _core_seconds()

    def spent(self) -> Spent:
        return Spent(time.perf_counter() - self._clock, _core_seconds() - self._cores)


@dataclass(frozen=True)
class Found:
    """A kernel. found: spent until then since the search began; compiled: on compiling it, None where it was not."""

    name: str
    found: Spent
    compiled: Spent | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--out", type=Path, help="a .json file")
    arguments = parser.parse_args()
    config = EngineConfig(arguments.model, device="meta", dtype="bfloat16", warm=Warm.FULL)
    loads = [os.getloadavg()[0]]
    imports, search, found = apart(find, config)
    _, row, kernels = apart(compile_in_a_row, config)
    helpers = {num: helper_spent(config, num) for num in arguments.processes}
    assert {k.name for k in found} == {k.name for k in kernels}
    reckoned = {num: reckoned_seconds(imports, found, kernels, num) for num in RECKONED}
    record: dict[str, Any] = {
        "schema_version": 1,
        "model": arguments.model,
        "dtype": "bfloat16",
        "target": {"name": "NVIDIA H200", **H200._asdict()},
        "environment": environment("cpu"),
        "load_average_before_and_after": [*loads, os.getloadavg()[0]],
        "num_kernels": len(kernels),
        "imports": asdict(imports),
        "finding_alone": asdict(search),
        "in_a_row": asdict(row),
        "helper_by_processes": {num: asdict(spent) for num, spent in helpers.items()},
        "reckoned_helper_seconds_by_processes": reckoned,
        "kernels": [asdict(kernel) for kernel in kernels],
    }
    _print(record)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(_rounded(record), indent=1) + "\n")


def apart(function: Callable[[EngineConfig], T], config: EngineConfig) -> T:
    """In a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, config).result()


def find(config: EngineConfig) -> tuple[Spent, Spent, list[Found]]:
    """Spent from the process's start to the search, and on the search; and what was found."""
    return _search(config, lambda work: None)


def compile_in_a_row(config: EngineConfig) -> tuple[Spent, Spent, list[Found]]:
    """As `find`, and each kernel is compiled when it is found, as an engine's launches do."""

    def compile_one(work: Callable[[], object]) -> Spent:
        timer = Timer()
        work()
        return timer.spent()

    return _search(config, compile_one)


def _search(
    config: EngineConfig, take: Callable[[Callable[[], object]], Spent | None]
) -> tuple[Spent, Spent, list[Found]]:
    from triton import knobs

    from fastkernels.engine.kernel_compiler import find_kernels

    spent_on_imports = Spent(time.time() - psutil.Process().create_time(), _core_seconds())
    found: list[Found] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope():
        knobs.cache.dir = folder
        timer = Timer()
        find_kernels(
            config, H200, lambda name, work: found.append(Found(name, timer.spent(), take(work))), failures.append
        )
        whole = timer.spent()
    if failures:
        raise SystemExit(f"A part of the start did not run: {failures[0]}")
    return spent_on_imports, whole, found


def helper_spent(config: EngineConfig, num_processes: int) -> Spent:
    """From its start to its end, imports included."""
    with tempfile.TemporaryDirectory() as folder:
        timer = Timer()
        helper = KernelHelper(Order(config, H200, folder, num_processes, os.getpid()))
        if not helper.wait(patience=300) or helper.failures:
            raise SystemExit(f"The helper did not compile all: {helper.failures}")
        return timer.spent()


def reckoned_seconds(imports: Spent, found: list[Found], kernels: list[Found], num_processes: int) -> float:
    """Of the helper with so many idle cores, and one more for its search."""
    free = [0.0] * num_processes
    for one, compiled in zip(found, kernels, strict=True):
        assert compiled.compiled is not None
        start = max(heapq.heappop(free), one.found.core_seconds)
        heapq.heappush(free, start + compiled.compiled.core_seconds)
    return imports.core_seconds + max(free)


def _core_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _print(record: dict[str, Any]) -> None:
    ways = {"imports": record["imports"], "finding alone": record["finding_alone"], "in a row": record["in_a_row"]}
    ways |= {f"helper, {num} processes": spent for num, spent in record["helper_by_processes"].items()}
    print(f"{record['model']}: {record['num_kernels']} kernels")
    for name, spent in ways.items():
        print(f"{name:24} {spent['seconds']:6.1f} s, {spent['core_seconds']:6.1f} s of a core")
    for num, seconds in record["reckoned_helper_seconds_by_processes"].items():
        print(f"reckoned, {num:2} processes   {seconds:6.1f} s")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    main()
