"""The suite, run on this machine: every cheat must be rejected for its reason, every honest twin must pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastkernels.adversarial.catalogue import REFUTED, Item, items
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
        return asdict(self)


LIMITS = Limits(call_seconds=4.0, memory_bytes=1 << 30)
GPU_LIMITS = Limits(call_seconds=10.0, memory_bytes=24 << 30)


def limits_for(device: str) -> Limits:
    return GPU_LIMITS if device.startswith("cuda") else LIMITS


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


def judge_item(item: Item, device: str, nursery: Nursery) -> Result:
    record = Judge(config_for(item, device), nursery).judge(ops()[item.op], resolve_set(item.path), [])
    outcome = outcome_of(record)
    is_right = (outcome if item.is_cheat else record.verdict) in item.accepted
    return Result(
        name=item.name,
        family=item.family,
        op=item.op,
        is_cheat=item.is_cheat,
        accepted=item.accepted,
        outcome=outcome,
        is_right=is_right,
        message=record.message,
        seconds=round(record.seconds, 2),
    )


def run(device: str, on_result: Callable[[Result, int, int], None]) -> list[Result]:
    """Judge every file that `device` can run; `on_result` is told each result, its number and how many there are."""
    chosen = [item for item in items() if item.runs_on(device)]
    results = []
    with Nursery(device, limits_for(device)) as nursery:
        for number, item in enumerate(chosen, start=1):
            results.append(judge_item(item, device, nursery))
            on_result(results[-1], number, len(chosen))
    return results


def summary(results: Sequence[Result]) -> str:
    cheats = [r for r in results if r.is_cheat]
    honest = [r for r in results if not r.is_cheat]
    return (
        f"{sum(r.is_right for r in cheats)} of {len(cheats)} cheats rejected, "
        f"{sum(r.is_right for r in honest)} of {len(honest)} honest twins accepted"
    )
