"""The suite, run on this machine: every cheat must be rejected for its reason, every honest twin must pass."""

from __future__ import annotations

import atexit
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastkernels.adversarial.catalogue import REFUTED, Item, items
from fastkernels.errors import UnknownNameError
from fastkernels.harness.judge import Judge, JudgeConfig
from fastkernels.harness.records import OpRecord
from fastkernels.harness.timing import Protocol
from fastkernels.harness.verdict import Verdict
from fastkernels.harness.workers import Limits, Nursery
from fastkernels.registry import ops
from fastkernels.sets import resolve_set


@dataclass(frozen=True)
class Result:
    """What became of one file. outcome: the verdict, or LOSS when it passed and is slower everywhere."""

    name: str
    family: str
    op: str
    is_cheat: bool
    accepted: tuple[str, ...]
    outcome: str
    is_right: bool
    message: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As it is filed: paths from the project's folder on."""
        return {**asdict(self), "message": self.message.replace(f"{_ROOT}/", "")}


_ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits(call_seconds=4.0, first_call_factor=1.0, memory_bytes=1 << 30)
GPU_LIMITS = Limits(call_seconds=10.0, first_call_factor=3.0, memory_bytes=24 << 30)


def config_for(item: Item, device: str) -> JudgeConfig:
    """Few shapes and short timing: what decides here is whether a cheat is seen, not how fast it is."""
    return JudgeConfig(
        device=device,
        dtypes=(torch.float32,),
        num_shapes=2,
        protocol=Protocol(num_restarts=1, num_blocks=10, calls_per_visit=3),
        is_timed=item.is_timed,
    )


def outcome_of(record: OpRecord) -> str:
    is_slower = bool(record.timings) and all(timing.speed == REFUTED for timing in record.timings)
    return REFUTED if record.verdict == Verdict.PASSED and is_slower else record.verdict


class SelfTest:
    """Judges files of the suite on one device; use as a context manager."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.nursery = Nursery(device, GPU_LIMITS if device.startswith("cuda") else LIMITS)
        self._judges: dict[bool, Judge] = {}

    def __enter__(self) -> SelfTest:
        return self

    def __exit__(self, *error: object) -> None:
        self.nursery.close()

    def judge(self, item: Item) -> Result:
        if item.is_timed not in self._judges:
            self._judges[item.is_timed] = Judge(config_for(item, self.device), self.nursery)
        record = self._judges[item.is_timed].judge(ops()[item.op], resolve_set(item.path), [])
        outcome = outcome_of(record) if item.is_cheat else record.verdict
        return Result(
            name=item.name,
            family=item.family,
            op=item.op,
            is_cheat=item.is_cheat,
            accepted=item.accepted,
            outcome=outcome,
            is_right=outcome in item.accepted,
            message=record.message,
            seconds=round(record.seconds, 2),
        )


_mine: list[SelfTest] = []


def _start(device: str) -> None:
    torch.set_num_threads(1)
    _mine.append(SelfTest(device))
    atexit.register(_mine[0].nursery.close)


def _judge(item: Item) -> Result:
    return _mine[0].judge(item)


def chosen_items(device: str, names: Sequence[str] = ()) -> list[Item]:
    """Files that `device` can run, of these names alone where any are given.

    Errors: UnknownNameError.
    """
    found = {item.name: item for item in items() if item.runs_on(device)}
    for name in names:
        if name not in found:
            raise UnknownNameError("file of the suite", name, list(found))
    return [item for item in found.values() if not names or item.name in names]


def run(device: str, on_result: Callable[[Result, int, int], None], names: Sequence[str] = ()) -> list[Result]:
    """Judge the files of `chosen_items`; `on_result` is told each result, its number and how many there are.

    Files that are judged by their answers alone go several at a time where there are cores for it; what is timed
    has the machine for itself.
    """
    chosen = chosen_items(device, names)
    results: list[Result] = []

    def note(result: Result) -> None:
        results.append(result)
        on_result(result, len(results), len(chosen))

    timed = [item for item in chosen if item.is_timed]
    others = [item for item in chosen if not item.is_timed]
    num_processes = min(6, (os.cpu_count() or 1) // 3)
    if num_processes > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_processes, context, initializer=_start, initargs=(device,)) as pool:
            for result in pool.map(_judge, others):
                note(result)
    else:
        timed = chosen
    with SelfTest(device) as suite:
        for item in timed:
            note(suite.judge(item))
    return results


def summary(results: Sequence[Result]) -> str:
    cheats = [r for r in results if r.is_cheat]
    honest = [r for r in results if not r.is_cheat]
    return (
        f"{sum(r.is_right for r in cheats)} of {len(cheats)} cheats rejected, "
        f"{sum(r.is_right for r in honest)} of {len(honest)} honest twins accepted"
    )
