"""What an eval run is of: scenarios (a model, its dtype, its ranks and its workloads) and the sets they come in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fastkernels.bench.e2e.scenario import Scenario
from fastkernels.distributed.tensor_parallel import kv_head_shard, shard_size
from fastkernels.engine.model_source import build_config, check_experts, find_model
from fastkernels.errors import UnknownNameError, UsageError
from fastkernels.registry import Architecture, Kind, architecture_of

DTYPES = ("float32", "bfloat16", "float16")
MOST_PASS_SECONDS = 24 * 3600
LEAST_RESTARTS = 3
"""Of an interval over restarts: Student's factor is 12.7 for two and 4.3 for three."""

_LEAST = {"num_restarts": LEAST_RESTARTS, "num_passes": 1, "num_checked": 1}
"""Of a scenario set's numbers."""

_SPLIT = (
    ("num_attention_heads", "The number of attention heads"),
    ("encoder_attention_heads", "The number of the encoder's attention heads"),
    ("decoder_attention_heads", "The number of the decoder's attention heads"),
    ("num_heads", "The number of heads"),
    ("n_groups", "The number of groups"),
    ("linear_num_key_heads", "The number of key heads"),
    ("linear_num_value_heads", "The number of value heads"),
)
"""What a configuration has of these, ranks share evenly."""

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


def check_dtype(dtype: str) -> None:
    """Errors: UsageError."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype!r}; it is one of {', '.join(DTYPES)}.")


def check_parts(model: str, kind: str, parts: Sequence[WorkloadPart]) -> None:
    """Errors: UsageError when there is none, or one twice."""
    if not parts:
        raise UsageError(f"{model} has no {kind} workload; a score blends throughput and latency.")
    labels = [part.label for part in parts]
    if len(set(labels)) < len(labels):
        raise UsageError(f"{model} has a {kind} workload twice: {', '.join(labels)}.")


@dataclass(frozen=True)
class EvalScenario:
    """One model as it is run on every side.

    expert_parallel: its ranks hold whole experts each, instead of slices of all.
    Errors: UsageError names the value and its limit; UnknownNameError for the model, CheckpointError for its files.
    """

    model: str
    dtype: str
    tensor_parallel_size: int = 1
    throughput: tuple[WorkloadPart, ...] = ()
    latency: tuple[WorkloadPart, ...] = ()
    expert_parallel: bool = False

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if self.tensor_parallel_size < 1:
            raise UsageError(f"tensor_parallel_size is {self.tensor_parallel_size}; the least is 1.")
        for kind in ("throughput", "latency"):
            check_parts(self.model, kind, getattr(self, kind))

    @property
    def name(self) -> str:
        """The item's: no other scenario of a set has it."""
        split = "ep" if self.expert_parallel else "tp"
        ranks = f"-{split}{self.tensor_parallel_size}" if self.tensor_parallel_size > 1 else ""
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
        if self.expert_parallel:
            options["enable_expert_parallel"] = True
        return Scenario(self.model, part.name, part.num_requests, part.scale, seed, options)

    def check_experts(self) -> None:
        """Errors: UsageError when whole experts are asked for, and there is one rank, or the model has too few."""
        if not self.expert_parallel:
            return
        if self.tensor_parallel_size < 2:
            raise UsageError("expert_parallel spreads experts over ranks; give tensor_parallel_size, of 2 or more.")
        check_experts(self.model, self.tensor_parallel_size)

    def check_ranks(self) -> None:
        """Errors: UsageError when the model's heads do not split over the ranks; CheckpointError of its sizes."""
        if self.tensor_parallel_size == 1 or not self.makes_tokens:
            return
        whole, size = build_config(find_model(self.model)), self.tensor_parallel_size
        try:
            for config in (whole, getattr(whole, "text", None), getattr(whole, "vision", None)):
                for name, what in _SPLIT:
                    shard_size(getattr(config, name, None) or 0, size, what)
                kv_head_shard(getattr(config, "num_key_value_heads", None) or size, 0, size)
        except ValueError as error:
            raise UsageError(f"tensor_parallel_size is {size}, and {self.model} does not split so: {error}") from None

    def check_part(self, part: WorkloadPart) -> None:
        """Errors: UsageError when the workload is not of such a model; those of the model."""
        self.engine_scenario(part, _MODEL_SEED).check()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EvalScenario:
        """Of asdict. Errors: KeyError, TypeError for what is missing or unknown; those of a scenario."""
        parts = {kind: tuple(WorkloadPart(**part) for part in data[kind]) for kind in ("throughput", "latency")}
        return cls(**{**data, **parts})


def check_option(name: str, value: float) -> None:
    """Of a scenario set: one of its numbers. Errors: UsageError names it and its limit."""
    if name in _LEAST and value < _LEAST[name]:
        raise UsageError(f"{name} is {value}; the least is {_LEAST[name]}.")
    if name == "pass_seconds" and not 0 < value <= MOST_PASS_SECONDS:
        raise UsageError(f"pass_seconds is {value}; it is over 0 and at most {MOST_PASS_SECONDS}.")


def check_scenarios(name: str, scenarios: Sequence[EvalScenario]) -> None:
    """name: the set's. Errors: UsageError when there is none, or one twice."""
    if not scenarios:
        raise UsageError(f"The scenario set {name!r} has no scenario.")
    counts = Counter(scenario.name for scenario in scenarios)
    for of_scenario, count in counts.items():
        if count > 1:
            raise UsageError(f"{count} scenarios of {name!r} are {of_scenario}; one is enough.")


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
        for name in (*_LEAST, "pass_seconds"):
            check_option(name, getattr(self, name))
        check_scenarios(self.name, self.scenarios)

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
        """A scenario says `expert_parallel` where that is true alone: entries of boards are known by a digest of this,
        older ones too."""
        data = asdict(self)
        for scenario in data["scenarios"]:
            if not scenario["expert_parallel"]:
                del scenario["expert_parallel"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ScenarioSet:
        """Of to_json. Errors: KeyError, TypeError for what is missing or unknown; UsageError of a set."""
        return cls(**{**data, "scenarios": tuple(EvalScenario.from_json(one) for one in data["scenarios"])})
