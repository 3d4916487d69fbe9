"""Whether an eval run holds what its scenarios ask for, as its results.json alone says; one that does not is refused.

What a results.json says that follows from nothing else in it (a time, a discrepancy, a digest) is on trust.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from fastkernels.bench.eval.scenario_file import find_scenario_set, scenario_sets
from fastkernels.bench.eval.scenarios import EvalScenario, ScenarioSet, WorkloadPart
from fastkernels.engine.model_source import presets, shipped_checkpoints
from fastkernels.errors import RunFolderError, UnknownNameError, UsageError
from fastkernels.registry import architecture
from fastkernels.report.shapes import Finite, fault
from fastkernels.scoring.items import Family, Outcome
from fastkernels.scoring.manifest import Manifest, load_manifest

Json = dict[str, Any]

_MOST_NAMES = 3
"""Of items, in a message."""


class _Scenario(TypedDict):
    model: str
    dtype: str
    tensor_parallel_size: int
    expert_parallel: NotRequired[bool]
    throughput: list[WorkloadPart]
    latency: list[WorkloadPart]


class _ScenarioSet(TypedDict):
    name: str
    scenarios: list[_Scenario]
    num_restarts: int
    num_passes: int
    num_checked: int
    pass_seconds: Finite


def scenarios_of(run: Path, results: Json) -> ScenarioSet:
    """What the run was of. Errors: RunFolderError when it does not say so, or says what no scenario set is."""
    found = results.get("scenarios")
    if not isinstance(found, dict):
        raise RunFolderError(f"{run} does not say what its scenarios were; evaluate again.")
    wrong = fault(found, _ScenarioSet, "scenarios")
    if not wrong and found["name"] != results.get("scenario_set"):
        wrong = f"scenario_set is {results.get('scenario_set')!r:.60}, and scenarios.name {found['name']!r:.60}"
    if wrong:
        raise RunFolderError(f"{run}: {wrong}; the results are damaged.")
    try:
        return ScenarioSet.from_json(found)
    except (UsageError, TypeError) as error:
        raise RunFolderError(f"{run}: scenarios: {error} The results are damaged.") from None


def check_shipped(run: Path, scenarios: ScenarioSet, models: Any) -> None:
    """The name of a shipped set stands for that set, whole or its scenarios of the models that the run was asked for
    (None: all). Errors: RunFolderError for a run of anything else under its name."""
    if scenarios.name not in scenario_sets():
        return
    shipped = find_scenario_set(scenarios.name)
    try:
        is_alike = scenarios == (shipped.only(models) if models else shipped)
    except (UnknownNameError, TypeError):
        is_alike = False
    if not is_alike:
        raise RunFolderError(
            f"{run} is of a scenario set {scenarios.name!r} with other scenarios, workloads, restarts or limits than "
            "the shipped set of that name has. Evaluate the shipped one without --restarts, or give those of your own "
            "another name."
        )


def manifest_of(run: Path, results: Json) -> Manifest:
    """What said which of its answers are right: this program's, since no other's thresholds are known here.

    Errors: RunFolderError.
    """
    found = results.get("manifest")
    if not isinstance(found, dict) or not {"version", "sha256"} <= found.keys():
        raise RunFolderError(f"{run} does not say by which manifest it was judged; evaluate again.")
    own = load_manifest()
    if (found["version"], found["sha256"]) != (own.version, own.sha256):
        raise RunFolderError(
            f"{run} was judged by manifest {found['version']!r} of SHA-256 {str(found['sha256'])[:12]}; this program "
            f"has {own.version!r} of {own.sha256[:12]} and cannot tell what that one allows. Evaluate again, or add "
            "the run with the program that made it."
        )
    return own


def check_items(run: Path, scenarios: ScenarioSet, name: str, records: Sequence[Json]) -> None:
    """Every scenario has one whole item with the set, and there is no other. name: the set's; records: its items.

    Errors: RunFolderError.
    """
    wanted = [scenario.name for scenario in scenarios.scenarios]
    counts = Counter(record["item"] for record in records)
    several = [name for name in wanted if counts[name] > 1]
    unknown = sorted(counts.keys() - set(wanted))
    if several or unknown:
        which = f"{_some(several)} more than once" if several else f"{_some(unknown)}, which its scenarios do not have"
        raise RunFolderError(f"{run} holds items of {which}: it is damaged. Evaluate again.")
    whole = {record["item"] for record in records if record["is_complete"]}
    if missing := sorted(set(wanted) - whole):
        raise RunFolderError(
            f"{run} lacks {len(missing)} whole items of {name} ({_some(missing)}); go on with the same command and "
            "--resume."
        )
    for scenario, record in _by_scenario(scenarios, records):
        _check_scenario(run, scenario, record)


def check_judged(run: Path, scenarios: ScenarioSet, manifest: Manifest, records: Sequence[Json]) -> None:
    """Every item is of its model's family and held against the manifest's thresholds of it. records: as check_items
    has found them right.

    Errors: RunFolderError.
    """
    for scenario, record in _by_scenario(scenarios, records):
        try:
            family = _family(scenario, record)
            thresholds = asdict(manifest.thresholds(family, scenario.dtype))
        except (UnknownNameError, ValueError) as error:
            raise RunFolderError(f"{run}: item {scenario.name}: {error}") from None
        for name, value in (("family", family), ("thresholds", thresholds)):
            if record[name] != value:
                raise RunFolderError(
                    f"{run}: {name} of item {scenario.name} is {record[name]}, and {value} by manifest "
                    f"{manifest.version}: altered, or of another program. Evaluate again."
                )


def check_samples(run: Path, scenarios: ScenarioSet, records: Sequence[Json]) -> None:
    """Every item that was measured has as many restarts, passes and compared answers as were asked for. records: as
    check_items has found them right.

    Errors: RunFolderError.
    """
    for scenario, record in _by_scenario(scenarios, records):
        if record["outcome"] == Outcome.MEASURED and (wrong := _samples_fault(scenarios, scenario, record)):
            raise RunFolderError(
                f"{run}: item {scenario.name} of {record['implementation']}: {wrong}; samples were taken away or "
                "added. Evaluate again."
            )


def _samples_fault(scenarios: ScenarioSet, scenario: EvalScenario, record: Json) -> str:
    """ "" when there is none."""
    counts = [("throughput", part.label, scenarios.num_passes) for part in scenario.throughput]
    counts += [("latency", part.label, part.num_requests) for part in scenario.latency]
    num_restarts, num_pairs = scenarios.num_restarts, sum(count for *_, count in counts)
    if not _has_passes(record["passes"], counts, num_restarts):
        listed = ", ".join(f"{count} of {kind} {label!r}" for kind, label, count in counts)
        return f"its passes are not {listed} in each of {num_restarts} restarts"
    num_compared = _num_compared(scenarios, scenario)
    num_found, num_noise = len(record["discrepancies"]), len(record["reference_noise"])
    is_one_of_all = record["family"] == Family.RANKING and num_found == num_restarts
    if num_found != num_restarts * num_compared and not is_one_of_all:
        return f"it has {num_found} discrepancies of {num_restarts} x {num_compared} compared answers"
    if num_noise % num_pairs or num_noise < num_restarts * num_pairs:
        return f"reference_noise has {num_noise} values of {num_restarts} restarts of {num_pairs} pairs"
    return ""


def _has_passes(passes: Sequence[Json], counts: Sequence[tuple[str, str, int]], num_restarts: int) -> bool:
    """Restarts of a part that was measured afterwards have numbers behind the others'."""
    first = min((one["restart"] for one in passes), default=0)
    wanted = [(first + number, *of_one) for number in range(num_restarts) for of_one in counts]
    found = [(one["restart"], one["kind"], one["workload"], len(one["reference_s"])) for one in passes]
    return sorted(found) == sorted(wanted)


def _num_compared(scenarios: ScenarioSet, scenario: EvalScenario) -> int:
    """Answers of one restart; where requests are ranked among each other, these have one discrepancy together."""
    of_passes = sum(min(part.num_requests, scenarios.num_checked) for part in scenario.throughput)
    return scenarios.num_passes * of_passes + sum(min(p.num_requests, scenarios.num_checked) for p in scenario.latency)


def _by_scenario(scenarios: ScenarioSet, records: Sequence[Json]) -> list[tuple[EvalScenario, Json]]:
    """With the items of parts that were measured in the place of sets that broke a model."""
    by_name = {scenario.name: scenario for scenario in scenarios.scenarios}
    parts = [(record["item"], (record["subset"] or {}).get("item")) for record in records]
    named = [(record["item"], record) for record in records] + [
        (name, part) for name, part in parts if part is not None
    ]
    return [(by_name[name], record) for name, record in named]


def _family(scenario: EvalScenario, record: Json) -> str:
    """Of a shipped model as its files say; of any other, which need not be on this machine, of the architecture that
    the item names. Errors: UnknownNameError; ValueError when the item names another architecture than the model's."""
    is_shipped = scenario.model in (*presets(), *shipped_checkpoints())
    name = scenario.architecture.name if is_shipped else record["architecture"]
    if record["architecture"] != name:
        raise ValueError(f"architecture is {record['architecture']!r}, and {scenario.model} is of {name!r}.")
    return architecture(name).family


def _check_scenario(run: Path, scenario: EvalScenario, record: Json) -> None:
    """Errors: RunFolderError."""
    asked = {
        "item": scenario.name,
        "model": scenario.model,
        "dtype": scenario.dtype,
        "num_ranks": scenario.tensor_parallel_size,
    }
    for name, value in asked.items():
        if record[name] != value:
            raise RunFolderError(
                f"{run}: {name} of an item of {scenario.name} is {record[name]!r}, and {value!r} in its scenario; the "
                "results are damaged."
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
