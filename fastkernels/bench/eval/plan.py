"""One scenario with its sets, as plain data: what a process on this host or another needs to evaluate it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastkernels.bench.eval.order import Order
from fastkernels.bench.eval.records import ItemRecord, SetRecord
from fastkernels.bench.eval.scenarios import EvalScenario, ScenarioSet
from fastkernels.bench.eval.worker import readable_paths
from fastkernels.scoring.items import Outcome, Thresholds

Event = dict[str, Any]
Tell = Callable[[Event], None]
"""Hears {"event": "progress", "item", "text", "share"} while a scenario runs, and {"event": "item", "record"} of each
item as soon as it is done, with "is_complete" false of what an interruption cut short; of a host of a cluster before
either {"event": "host", "host", "environment"}, and {"event": "problem", "message"} of what it could not do."""


@dataclass(frozen=True)
class Plan:
    """sets: those whose item is not there yet. seed: of requests and orders. gpus: the devices to use, None: any."""

    scenario: EvalScenario
    sets: tuple[SetRecord, ...]
    thresholds: Thresholds
    device: str
    seed: int
    num_restarts: int
    num_passes: int
    num_checked: int
    pass_seconds: float
    gpus: tuple[str, ...] | None = None

    @property
    def num_gpus(self) -> int:
        return self.scenario.tensor_parallel_size if self.device.startswith("cuda") else 0

    def on(self, gpus: tuple[str, ...]) -> Plan:
        return replace(self, gpus=gpus)

    def order(self, *folders: str) -> Order:
        """Of a side: the baseline, or the set in a folder. folders: further ones to read, behind it."""
        scenario = self.scenario
        return Order(
            model=str(Path(scenario.model).resolve()) if Path(scenario.model).exists() else scenario.model,
            dtype=scenario.dtype,
            device=self.device,
            tensor_parallel_size=scenario.tensor_parallel_size,
            enable_expert_parallel=scenario.expert_parallel,
            candidates=folders[:1],
            gpus=self.gpus,
            readable=(*readable_paths(scenario.model), *folders),
        )

    def item(self, record: SetRecord, outcome: Outcome, reason: str = "", message: str = "") -> ItemRecord:
        scenario = self.scenario
        return ItemRecord(
            item=scenario.name,
            model=scenario.model,
            architecture=scenario.architecture.name,
            family=scenario.architecture.family,
            dtype=scenario.dtype,
            num_ranks=scenario.tensor_parallel_size,
            implementation=record.name,
            outcome=str(outcome),
            reason=reason,
            message=message,
            thresholds=asdict(self.thresholds),
            set_sha256=record.sha256,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        return cls(
            **{
                **data,
                "scenario": EvalScenario.from_json(data["scenario"]),
                "sets": tuple(SetRecord(**record) for record in data["sets"]),
                "thresholds": Thresholds(**data["thresholds"]),
                "gpus": None if data["gpus"] is None else tuple(data["gpus"]),
            }
        )


def plan_of(
    scenario: EvalScenario,
    sets: tuple[SetRecord, ...],
    options: ScenarioSet,
    thresholds: Thresholds,
    device: str,
    seed: int,
) -> Plan:
    return Plan(
        scenario=scenario,
        sets=sets,
        thresholds=thresholds,
        device=device,
        seed=seed,
        num_restarts=options.num_restarts,
        num_passes=options.num_passes,
        num_checked=options.num_checked,
        pass_seconds=options.pass_seconds,
    )
