"""What an eval run is of: scenarios (a model, its dtype, its ranks and its workloads) and the sets they come in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fastkernels.bench.e2e.scenario import Scenario
from fastkernels.engine.model import find_model
from fastkernels.errors import UnknownNameError, UsageError
from fastkernels.registry import Architecture, Kind, architecture_of

DTYPES = ("float32", "bfloat16", "float16")
MOST_PASS_SECONDS = 24 * 3600
LEAST_RESTARTS = 3
"""Of an interval over restarts: Student's factor is 12.7 for two and 4.3 for three."""

_MODEL_SEED = 0
"""Of random weights: all sides and all runs have the same."""


@dataclass(frozen=True)
class WorkloadPart:
    """One workload of a scenario; num_requests and scale as `fastkernels e2e` has them.

    Throughput: a pass has all requests together. Latency: each request alone.
    """

    name: str
    num_requests: int
    scale: float = 1.0

    @property
    def label(self) -> str:
        """As records name it: what was run, in short."""
        return f"{self.name} x{self.num_requests}" + (f" scale {self.scale:g}" if self.scale != 1.0 else "")


@dataclass(frozen=True)
class EvalScenario:
    """One model as it is run on every side.

    Errors: UsageError names the value and its limit; UnknownNameError for the model, CheckpointError for its files.
    """

    model: str
    dtype: str
    tensor_parallel_size: int = 1
    throughput: tuple[WorkloadPart, ...] = ()
    latency: tuple[WorkloadPart, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype is {self.dtype!r}; it is one of {', '.join(DTYPES)}.")
        if self.tensor_parallel_size < 1:
            raise UsageError(f"tensor_parallel_size is {self.tensor_parallel_size}; the least is 1.")
        for kind in ("throughput", "latency"):
            parts: tuple[WorkloadPart, ...] = getattr(self, kind)
            if not parts:
                raise UsageError(f"{self.model} has no {kind} workload; a score blends throughput and latency.")
            labels = [part.label for part in parts]
            if len(set(labels)) < len(labels):
                raise UsageError(f"{self.model} has a {kind} workload twice: {', '.join(labels)}.")

    @property
    def name(self) -> str:
        """The item's: no other scenario of a set has it."""
        ranks = f"-tp{self.tensor_parallel_size}" if self.tensor_parallel_size > 1 else ""
        return f"{Path(self.model).name.removesuffix('.json')}-{self.dtype}{ranks}"

    @cached_property
    def architecture(self) -> Architecture:
        return architecture_of(find_model(self.model).hf_config)

    @property
    def makes_tokens(self) -> bool:
        return self.architecture.kind is Kind.AUTOREGRESSIVE

    def engine_scenario(self, part: WorkloadPart, seed: int) -> Scenario:
        """The part as an offline scenario of `e2e`, which knows its requests."""
        options: dict[str, Any] = {"dtype": self.dtype, "tensor_parallel_size": self.tensor_parallel_size}
        return Scenario(self.model, part.name, part.num_requests, part.scale, seed, options)

    def check_part(self, part: WorkloadPart) -> None:
        """Errors: UsageError when the workload is not of such a model; those of the model."""
        self.engine_scenario(part, _MODEL_SEED).check()


@dataclass(frozen=True)
class ScenarioSet:
    """Scenarios that are evaluated together.

    num_restarts: fresh processes of each side. num_passes: timed passes of each throughput workload in one.
    num_checked: answers of a pass that are compared at most, chosen after they are there. pass_seconds: the least that
    a candidate may take for a pass before it counts as hanging, at most a day.
    """

    name: str
    scenarios: tuple[EvalScenario, ...]
    num_restarts: int = LEAST_RESTARTS
    num_passes: int = 3
    num_checked: int = 64
    pass_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not self.scenarios:
            raise UsageError(f"The scenario set {self.name!r} has no scenario.")
        for name, least in (("num_restarts", LEAST_RESTARTS), ("num_passes", 1), ("num_checked", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; the least is {least}.")
        if not 0 < self.pass_seconds <= MOST_PASS_SECONDS:
            raise UsageError(f"pass_seconds is {self.pass_seconds}; it is over 0 and at most {MOST_PASS_SECONDS}.")
        names = [scenario.name for scenario in self.scenarios]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"{names.count(name)} scenarios of {self.name!r} are {name}; one is enough.")

    def only(self, models: Sequence[str]) -> ScenarioSet:
        """The scenarios of these models. Errors: UnknownNameError for one that no scenario is of."""
        known = {scenario.model for scenario in self.scenarios}
        for model in models:
            if model not in known:
                raise UnknownNameError(f"model in the scenario set {self.name!r}", model, known)
        return replace(self, scenarios=tuple(s for s in self.scenarios if s.model in models))

    def with_restarts(self, num_restarts: int) -> ScenarioSet:
        """Errors: UsageError for fewer than an interval needs."""
        return replace(self, num_restarts=num_restarts)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
