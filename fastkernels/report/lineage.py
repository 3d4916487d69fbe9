"""Which source of an op came from which, and how fast each was: read from MLflow's tags."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fastkernels.errors import EnvironmentProblem, UsageError
from fastkernels.harness.verdict import Verdict
from fastkernels.registry import find_ops
from fastkernels.report.mean_speedup import LogInterval, log_interval, mean_interval
from fastkernels.report.track import (
    EXPERIMENT,
    default_uri,
    newest,
    requoted,
    silent,
)  # before MLflow: it keeps MLflow quiet

from mlflow import MlflowClient  # isort: skip
from mlflow.entities import Run  # isort: skip

_PAGE = 500
_SHORTEST = 8
"""Digits of a hash that `# parent:` may be cut to."""


@dataclass(frozen=True)
class Judged:
    """One judgement of a source. speedup: geometric mean over its timed cases; None when it did not pass or was not
    timed."""

    when: datetime
    verdict: str
    speedup: LogInterval | None
    num_cases: int
    hardware: str
    sweep: str


@dataclass
class Kernel:
    """One source in one set. parent: the hash that it names, or the source judged before it; judged: oldest first."""

    sha256: str
    implementation: str
    parent: str | None
    judged: list[Judged]
    children: list[Kernel] = field(default_factory=list)

    @property
    def best(self) -> Judged | None:
        timed = [j for j in self.judged if j.speedup is not None]
        return max(timed, key=lambda j: j.speedup.centre if j.speedup else -math.inf, default=None)


@dataclass(frozen=True)
class Lineage:
    """roots: sources that came from none that was judged, oldest first; `kernels` are all, oldest first."""

    op: str
    store: str
    kernels: Sequence[Kernel]
    roots: Sequence[Kernel]

    @property
    def hardware(self) -> list[str]:
        return sorted({j.hardware for kernel in self.kernels for j in kernel.judged if j.hardware})


def find_lineage(op: str, uri: str | None = None) -> Lineage:
    """Errors: UnknownNameError, or UsageError when the store has no judgement of the op; EnvironmentProblem when the
    store cannot be read."""
    uri = uri or default_uri()
    name = _op_name(op)
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.is_file():
        raise UsageError(
            f"There is no MLflow store {path} yet; judge {name} with `fastkernels kernels --target {name}`."
        )
    try:
        with silent():
            client = MlflowClient(tracking_uri=uri)
            runs = _judgements(client, name)
            kernels = _kernels(client, runs)
    except Exception as error:  # whatever a store, a server or a driver raises
        first = (str(error).strip().splitlines() or [""])[0]
        raise EnvironmentProblem(
            f"The MLflow store {uri} cannot be read ({type(error).__name__}: {first[:300]})."
        ) from error
    if not kernels:
        raise UsageError(f"{uri} has no judgement of {name}; judge it with `fastkernels kernels --target {name}`.")
    return Lineage(name, uri, kernels, linked(kernels))


def _op_name(op: str) -> str:
    found = find_ops(op)
    if len(found) > 1:
        raise UsageError(f"{op} is {len(found)} ops: {', '.join(e.name for e in found)}. Name one.")
    return found[0].name


def _judgements(client: MlflowClient, op: str) -> list[Run]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    found: list[Run] = []
    token: str | None = None
    wanted = f"tags.`fastkernels.role` = 'judgement' and tags.op = '{op}'"
    while True:
        page = client.search_runs(
            [experiment.experiment_id],
            wanted,
            max_results=_PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        found += page
        token = page.token
        if not token:
            return found


def _kernels(client: MlflowClient, runs: Sequence[Run]) -> list[Kernel]:
    found: dict[tuple[str, str], Kernel] = {}
    sweeps: dict[str, Run] = {}
    for run in runs:
        tags = run.data.tags
        sha, name = tags["source_sha256"], requoted(tags["set"])
        kernel = found.setdefault((name, sha), Kernel(sha, name, tags.get("parent_sha256"), []))
        parent = tags.get("mlflow.parentRunId", "")
        if parent and parent not in sweeps:
            sweeps[parent] = client.get_run(parent)
        kernel.judged.append(_judged(client, run, sweeps.get(parent)))
    return list(found.values())


def _judged(client: MlflowClient, run: Run, sweep: Run | None) -> Judged:
    verdict = run.data.tags.get("verdict", "unknown")
    cases = _speedups(client, run) if verdict == Verdict.PASSED and "speedup" in run.data.metrics else []
    return Judged(
        when=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        verdict=verdict,
        speedup=mean_interval(cases) if cases else None,
        num_cases=len(cases),
        hardware=sweep.data.params.get("hardware", "") if sweep else "",
        sweep=sweep.info.run_name if sweep else "",
    )


def _speedups(client: MlflowClient, run: Run) -> list[LogInterval]:
    """Of each timed case: MLflow keeps it at the step of its number; NaN where the run has no such case any more."""
    columns: list[dict[int, float]] = []
    for name in ("speedup", "speedup_low", "speedup_high"):
        found = newest(client, run.info.run_id, name)
        columns.append({step: m.value for step, m in found.items() if math.isfinite(m.value)})
    shared = sorted(set(columns[0]) & set(columns[1]) & set(columns[2]))
    return [log_interval(*(column[step] for column in columns)) for step in shared]


def linked(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Hang each kernel under its parent; returns those that hang under none. A circle is cut at its oldest."""
    parents = {id(kernel): _parent_of(kernel, kernels) for kernel in kernels}
    roots: list[Kernel] = []
    for kernel in kernels:
        seen, above = {id(kernel)}, parents[id(kernel)]
        while above is not None and id(above) not in seen:
            seen.add(id(above))
            above = parents[id(above)]
        if above is kernel:
            parents[id(kernel)] = None
        parent = parents[id(kernel)]
        (roots if parent is None else parent.children).append(kernel)
    return roots


def _parent_of(kernel: Kernel, kernels: Sequence[Kernel]) -> Kernel | None:
    """In the same set first: one source may stand in several."""
    if not kernel.parent or len(kernel.parent) < _SHORTEST:
        return None
    found = [k for k in kernels if k is not kernel and k.sha256.startswith(kernel.parent) and k.sha256 != kernel.sha256]
    return next((k for k in found if k.implementation == kernel.implementation), found[0] if found else None)


def in_tree_order(roots: Sequence[Kernel]) -> list[tuple[Kernel, int]]:
    """Each kernel before what came from it, with how deep it stands: an only child stands under its parent, not deeper,
    so that a long chain stays narrow."""
    found = []
    waiting = [(kernel, 0) for kernel in reversed(roots)]
    while waiting:
        kernel, depth = waiting.pop()
        found.append((kernel, depth))
        deeper = depth + (len(kernel.children) > 1)
        waiting += [(child, deeper) for child in reversed(kernel.children)]
    return found
