"""Tier 3: implementation sets inside whole models, over a scenario set; each item kept as soon as it is done."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fastkernels.bench.eval.hosts import Hosts, environment_here, is_measured
from fastkernels.bench.eval.implementations import EvalSet
from fastkernels.bench.eval.plan import Event, Plan, plan_of
from fastkernels.bench.eval.queue import GpuQueue, run_in_turn
from fastkernels.bench.eval.ray_queue import RayQueue
from fastkernels.bench.eval.records import EVAL_SCHEMA_VERSION, TOO_FEW_DEVICES
from fastkernels.bench.eval.scenarios import ScenarioSet
from fastkernels.bench.resume import header_of, known_environment, refuse_other_machine
from fastkernels.bench.run_folder import RunFolder
from fastkernels.env import visible_gpus
from fastkernels.errors import InputFileError, RunFolderError, UsageError
from fastkernels.scoring.items import Outcome
from fastkernels.scoring.macroeval import is_valid
from fastkernels.scoring.manifest import Manifest, load_manifest
from fastkernels.scoring.scores import items_of, scores, subset_scores

KIND = "eval"
Json = dict[str, Any]


@dataclass(frozen=True)
class EvalRun:
    """What is asked. seed: of requests and orders, drawn for a run. request: the words of the command."""

    scenarios: ScenarioSet
    sets: tuple[EvalSet, ...]
    device: str
    manifest: Manifest
    seed: int = field(default_factory=lambda: secrets.randbits(31))
    ray: str | None = None
    request: Json = field(default_factory=dict)

    def facts(self) -> Json:
        """What run.json says beside what every run's does: by it a run can be gone on with."""
        return {
            "eval_schema_version": EVAL_SCHEMA_VERSION,
            "scenario_set": self.scenarios.name,
            "scenarios": self.scenarios.to_json(),
            "manifest": {"version": self.manifest.version, "sha256": self.manifest.sha256},
            "seed": self.seed,
            "sets": [asdict(chosen.record) for chosen in self.sets],
        }

    def start(self, out: Path | None) -> RunFolder:
        """A new run folder, once all words are known to be right. Errors: UsageError."""
        self.plans({})
        hosts: Json = {} if self.ray is None else {"hosts": {}}
        return RunFolder.create(KIND, self.request, environment_here(self.device), out, **self.facts(), **hosts)

    def plans(self, done: Mapping[tuple[str, str], Json]) -> list[Plan]:
        """What is missing. done: items by scenario and set. Errors: UsageError for a dtype that is not calibrated."""
        found = []
        for scenario in self.scenarios.scenarios:
            sets = [s.record for s in self.sets if not _is_done(done.get((scenario.name, s.name)), s.record.sha256)]
            try:
                thresholds = self.manifest.thresholds(scenario.architecture.family, scenario.dtype)
            except ValueError as error:
                raise UsageError(f"{scenario.name} cannot be scored: {error}") from error
            if sets:
                found.append(plan_of(scenario, tuple(sets), self.scenarios, thresholds, self.device, self.seed))
        return found


def _is_done(item: Json | None, sha256: str) -> bool:
    """What the machine could not run, it may now."""
    if item is None or item["outcome"] == Outcome.BLOCKED:
        return False
    return bool(item["is_complete"]) and item["set_sha256"] == sha256


def read_manifest(path: Path | None = None) -> Manifest:
    """Errors: InputFileError."""
    try:
        return load_manifest(path)
    except ValueError as error:
        raise InputFileError(str(error)) from error


def resumed(run: EvalRun, folder: RunFolder) -> EvalRun:
    """The run as `folder` began it: with its seed.

    Errors: RunFolderError when it is of another kind, incomplete, or of another manifest; UsageError for other words,
    another machine or other versions; those of a cluster's hosts are looked at when they begin (hosts.Hosts).
    """
    header = header_of(folder, KIND)
    missing = [name for name in run.facts() if name not in header]
    if missing:
        raise RunFolderError(f"{folder.path} is incomplete: run.json has no {', '.join(missing)}.")
    there, here = header["manifest"], run.facts()["manifest"]
    if there != here:
        raise RunFolderError(
            f"{folder.path} was measured with manifest {there['version']} ({there['sha256'][:12]}); this program has "
            f"{here['version']} ({here['sha256'][:12]}). Scores of two manifests do not mix: start a new run."
        )
    device = header["environment"].get("device")
    if device != run.device:
        raise UsageError(f"{folder.path} ran on {device}; it cannot go on with --device {run.device}.")
    if header["scenarios"] != _as_json(run.scenarios.to_json()):
        raise UsageError(
            f"{folder.path} is of the scenario set {header['scenario_set']!r} with other scenarios, restarts or models "
            f"than {run.scenarios.name!r} has now. Start a new run, or give the words that it was started with."
        )
    before = known_environment(folder.path, header["environment"])
    if run.ray is None and is_measured(header):
        refuse_other_machine(folder.path, before, environment_here(run.device))
    return replace(run, seed=header["seed"])


def _as_json(value: Any) -> Any:
    """Tuples as lists, as a file has them."""
    if isinstance(value, dict):
        return {key: _as_json(inner) for key, inner in value.items()}
    return [_as_json(inner) for inner in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Watcher:
    """Is told how far a run is. begins: of a scenario, its number and how many there are; stage: text and the share of
    the scenario that is done; ends: of an item."""

    begins: Callable[[str, int, int], None] = lambda name, number, total: None
    stage: Callable[[str, str, float], None] = lambda name, text, share: None
    ends: Callable[[Json], None] = lambda record: None


def run_eval(run: EvalRun, folder: RunFolder, watcher: Watcher) -> Json:
    """The results, also on disk: an item when it is done, all of it at the end and when this is cut short.

    Errors: EnvironmentProblem for what the machine could not do; all else is in the items.
    """
    started, status = time.monotonic(), "interrupted"
    plans = run.plans({(i["item"], i["implementation"]): i for i in folder.items()})
    folder.amend(request=run.request, **run.facts())
    try:
        _Conductor(run, folder, watcher).conduct(plans)
        status = "finished"
    finally:
        results = finish(run, folder, status, time.monotonic() - started)
    return results


class _Conductor:
    """Plans to where they can run, and what is told of them to the run folder and the watcher."""

    def __init__(self, run: EvalRun, folder: RunFolder, watcher: Watcher) -> None:
        self._run, self._folder, self._watcher = run, folder, watcher
        self._num_begun, self._num_plans = 0, 0

    def conduct(self, plans: Sequence[Plan]) -> None:
        self._num_plans = len(plans)
        if self._run.ray is not None:
            with RayQueue(self._run.ray) as cluster:
                fitting = self._fitting(plans, cluster.num_gpus)
                cluster.run(fitting, self._tell, self._begins, Hosts(self._folder).admit)
            return
        Hosts(self._folder).take_here(environment_here(self._run.device))
        gpus = visible_gpus(torch.cuda.device_count()) if self._run.device.startswith("cuda") else []
        fitting = self._fitting(plans, len(gpus))
        if len(gpus) > 1 and len(fitting) > 1:
            GpuQueue(gpus, self._tell, self._begins).run(fitting)
        else:
            run_in_turn(fitting, self._tell, self._begins)

    def _fitting(self, plans: Sequence[Plan], num_gpus: int) -> list[Plan]:
        """Those that the machine can run; the items of others are BLOCKED at once."""
        for plan in plans:
            if plan.num_gpus > num_gpus:
                self._begins(plan)
                message = f"The scenario has {plan.num_gpus} ranks, a GPU each; this machine has {num_gpus}."
                for record in plan.sets:
                    item = plan.item(record, Outcome.BLOCKED, TOO_FEW_DEVICES, message)
                    self._tell({"event": "item", "record": item.to_json()})
        return [plan for plan in plans if plan.num_gpus <= num_gpus]

    def _begins(self, plan: Plan) -> None:
        self._watcher.begins(plan.scenario.name, self._num_begun, self._num_plans)
        self._num_begun += 1

    def _tell(self, event: Event) -> None:
        if event["event"] == "item":
            self._folder.add_item(event["record"])
            self._watcher.ends(event["record"])
        else:
            self._watcher.stage(event["item"], event["text"], event["share"])


def finish(run: EvalRun, folder: RunFolder, status: str, seconds: float) -> Json:
    """Write results.json: of every scenario with every set of the run what there is."""
    wanted = [(s.name, c.name) for c in run.sets for s in run.scenarios.scenarios]
    found = {(i["item"], i["implementation"]): i for i in folder.items()}
    items = [found[place] for place in wanted if place in found]
    extra: Json = {**run.facts(), "items": items}
    scored = {"kind": KIND, "eval_schema_version": EVAL_SCHEMA_VERSION, "items": items}
    extra["scores"] = {name: scores(some) for name, some in items_of(scored).items()}
    extra["subset_scores"] = subset_scores(scored)
    return folder.finish(status=status, seconds=seconds, **extra)


def not_passed(results: Json) -> list[str]:
    """Sentences on the items that are not valid: one each, one for all of a set that were never called, and one for a
    scenario that the baseline kept from being measured. What needs more devices than there are is left out."""
    valid = {(i.name, name): is_valid(i) for name, items in items_of(results).items() for i in items}
    found, never, blocked = [], Counter[str](), set[str]()
    for item in results["items"]:
        name = item["implementation"]
        if item["outcome"] == Outcome.BLOCKED:
            if item["reason"] != TOO_FEW_DEVICES and item["item"] not in blocked:
                blocked.add(item["item"])
                found.append(f"{item['item']}: not measured ({item['reason']}). {_summary(item['message'])}")
            continue
        if valid[item["item"], name]:
            continue
        never[name] += item["outcome"] == Outcome.NEVER_CALLED
        if item["outcome"] != Outcome.NEVER_CALLED:
            what = item["outcome"] if item["outcome"] == Outcome.INVALID else "not accurate"
            reason = f" ({item['reason']})" if item["reason"] else ""
            found.append(f"{name} in {item['item']}: {what}{reason}. {_summary(item['message'])}")
        elif never[name] == 1:
            count = sum(i["outcome"] == item["outcome"] and i["implementation"] == name for i in results["items"])
            others = f", and in {count - 1} other items" if count > 1 else ""
            found.append(f"{name} in {item['item']}{others}: {item['outcome']}. {item['message']}")
    return found


def _summary(message: str) -> str:
    """Of a traceback its last line, of anything else its first."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if not lines:
        return ""
    return lines[-1 if lines[0].startswith("Traceback") or "does not import" in lines[0] else 0]
