"""A run that someone hands in: whole, of a kind that is ranked, and one set of it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastkernels.errors import RunFolderError, UnknownNameError, UsageError
from fastkernels.harness.verdict import Verdict
from fastkernels.registry import ops as registered_ops
from fastkernels.report.load import load_results

Json = dict[str, Any]

KINDS = ("kernels", "eval")
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Submission:
    """A run on its way onto a board. implementation: the set of the run that is meant."""

    run: Path
    results: Json
    agent: str
    implementation: str

    @property
    def kind(self) -> str:
        return str(self.results["kind"])

    @property
    def scenario_set(self) -> str:
        """Of an eval run; a run of some of its models alone is of another set."""
        name = str(self.results.get("scenario_set", ""))
        return f"{name} (part)" if name and self.results["request"].get("model") else name

    @property
    def scenarios(self) -> set[str]:
        """Of the set, by name; none of a kernels run."""
        found = self.results.get("items", [])
        return {record["item"] for record in found if record["implementation"] == self.implementation}

    @property
    def scenarios_sha256(self) -> str:
        """Over all that the scenario set says: models, workloads, restarts; "" of a kernels run.

        Errors: RunFolderError when the run does not hold it.
        """
        if self.kind != "eval":
            return ""
        found = self.results.get("scenarios")
        if not isinstance(found, dict):
            raise RunFolderError(f"{self.run} does not say what its scenarios were; evaluate again.")
        return scenarios_digest(found)


def scenarios_digest(scenarios: Json) -> str:
    """SHA-256 over a scenario set as a run has it (ScenarioSet.to_json)."""
    return hashlib.sha256(json.dumps(scenarios, sort_keys=True).encode()).hexdigest()


def submission(run: Path, agent: str, implementation: str | None = None) -> Submission:
    """Errors: RunFolderError when the run is not whole, or not of one state of the set; UsageError when it is of
    another kind, or holds several sets and none is named; UnknownNameError when it does not hold the named one."""
    results = load_results(run)
    if results["kind"] not in KINDS:
        raise UsageError(f"{run} is a run of {results['kind']}; a leaderboard takes runs of {' and '.join(KINDS)}.")
    if results["status"] != "finished":
        raise RunFolderError(
            f"{run} is {results['status']}: an entry needs a finished run. Go on with the same command and --resume."
        )
    names = _sets(results)
    if not names:
        raise RunFolderError(f"{run} holds no judgement of any set; there is nothing to enter.")
    if implementation is None and len(names) > 1:
        raise UsageError(f"{run} holds {len(names)} sets ({', '.join(names)}): name one with --set.")
    chosen = implementation or names[0]
    if chosen not in names:
        raise UnknownNameError(f"set in {run}", chosen, names)
    if results["kind"] == "kernels":
        records = [r for r in results["ops"] if r["implementation"] == chosen]
        _check_ops(run, records)
        _check_judgements(run, records)
    _check_states(run, results, chosen)
    if not agent.strip() or len(agent) > _LONGEST_NAME or not agent.isprintable():
        raise UsageError(f"--agent {agent!r} is no name; it has 1 to {_LONGEST_NAME} printable characters.")
    return Submission(run, results, agent.strip(), chosen)


def _check_ops(run: Path, records: list[Json]) -> None:
    """Each is an op of the registry, at its level, once. Errors: RunFolderError."""
    known, counts = registered_ops(), Counter(record["op"] for record in records)
    for record in records:
        name, level = record["op"], record["level"]
        if name not in known:
            raise RunFolderError(f"{run} holds a judgement of {name!r}; this program has no op of that name.")
        if level != known[name].level:
            raise RunFolderError(f"{run} has {name} at level {level}; it is an op of level {known[name].level}.")
        if counts[name] > 1:
            raise RunFolderError(f"{run} holds {counts[name]} judgements of {name} by one set; it is damaged.")


def _check_judgements(run: Path, records: list[Json]) -> None:
    """Errors: RunFolderError."""
    failed = sorted(r["op"] for r in records if r["verdict"] == Verdict.JUDGE_ERROR)
    if failed:
        raise RunFolderError(
            f"{run} holds no judgement of {', '.join(failed)}: the judge itself failed (JUDGE_ERROR), which says "
            "nothing of the candidate. The same command with --resume tries them again."
        )


def _check_states(run: Path, results: Json, name: str) -> None:
    """All is of one state of the set's files, which they had in the end too. Errors: RunFolderError."""
    records = results["ops" if results["kind"] == "kernels" else "items"]
    states = {record["set_sha256"] for record in records if record["implementation"] == name}
    states |= {known["sha256"] for known in results.get("sets", []) if known["name"] == name}
    if results["kind"] == "kernels":
        states.discard("")  # of a judgement of before
    if len(states) > 1:
        raise RunFolderError(
            f"{run} holds judgements of {len(states)} states of the set, whose files changed on the way. The command "
            "that it was started with judges, with --resume, what is of an earlier one again."
        )


def _sets(results: Json) -> list[str]:
    found = results["ops"] if results["kind"] == "kernels" else results.get("items", [])
    return list(dict.fromkeys(record["implementation"] for record in found))
