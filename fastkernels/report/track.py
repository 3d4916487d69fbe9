"""Runs in MLflow: a parent per sweep, a child per judgement, sources and reports as artifacts.

Publishing a sweep again updates its runs. A child's lineage is in two tags: the SHA-256 of its source, and
that of what it came from: a line `# parent: <sha256>` in the source, or else the source that was judged
last before it for the same op and set.
"""

from __future__ import annotations

import io
import logging
import math
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import Any

from fastkernels import env
from fastkernels.harness.verdict import Verdict
from fastkernels.report.view import error_groups, max_error

env.quiet_mlflow()

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, Run, RunTag  # noqa: E402

EXPERIMENT = "fastkernels"
_PARENT = re.compile(r"^\s*#\s*parent:\s*([0-9a-f]{8,64})\s*$", re.MULTILINE)
_LONGEST = 500
"""Characters of a param; servers before MLflow 2.10 take no more."""

_FILES = ("run.json", "results.json", "report.html")

_METRICS = {
    "speedup": "ratio",
    "speedup_low": "low",
    "speedup_high": "high",
    "noise_floor": "noise_floor",
    "baseline_us": "baseline_us",
    "candidate_us": "candidate_us",
    "warm_candidate_us": "warm_candidate_us",
    "graph_candidate_us": "graph_candidate_us",
    "roofline_share": "candidate_roofline_share",
    "baseline_roofline_share": "baseline_roofline_share",
}
"""MLflow's name: TimingRecord's"""


def default_uri() -> str:
    return f"sqlite:///{env.home().resolve() / 'mlflow.db'}"


def log_run(run: Path, results: dict[str, Any], uri: str | None = None) -> str:
    """Log a sweep and all its judgements; returns the store's URI.

    Errors: MlflowException and whatever the store's driver raises.
    """
    uri = uri or default_uri()
    with silent():
        _Sweep(Store(MlflowClient(tracking_uri=uri), uri), run, results).log()
    return uri


@contextmanager
def silent() -> Iterator[None]:
    """MLflow and its migrations tell of their steps; the command line's output is not for that."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Store:
    """FastKernels' experiment in an MLflow store."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self.client = client
        self.experiment = self._experiment(uri)

    def found(self, tags: dict[str, str]) -> Run | None:
        runs = self.client.search_runs([self.experiment], _filter(tags), max_results=1)
        return runs[0] if runs else None

    def run(self, tags: dict[str, str], name: str, created: int, params: dict[str, Any]) -> str:
        """The id of the run with these tags; a new one with these params when there is none."""
        known = self.found(tags)
        if known is not None:
            return str(known.info.run_id)
        run_id = str(self.client.create_run(self.experiment, created, tags, run_name=name).info.run_id)
        self.client.log_batch(run_id, params=_params(params))
        return run_id

    def log_metrics(self, run_id: str, figures: Mapping[str, Sequence[float | None]]) -> None:
        """What changed of the run's figures; figures: by name the value at each step. One that is gone becomes NaN.

        Of two values with one timestamp MLflow shows the larger, so that each change is a later one.
        """
        names = self.client.get_run(run_id).data.metrics
        known = {(name, step): m for name in names for step, m in newest(self.client, run_id, name).items()}
        wanted = {
            (name, step): float(value)
            for name, values in figures.items()
            for step, value in enumerate(values)
            if value is not None and math.isfinite(value)
        }
        now = max([time.time_ns() // 10**6, *(1 + m.timestamp for m in known.values())])
        changed = [
            Metric(name, value, now, step)
            for (name, step), value in {**dict.fromkeys(known, math.nan), **wanted}.items()
            if not ((name, step) in known and _is_same(known[name, step].value, value))
        ]
        self.client.log_batch(run_id, metrics=changed)

    def end(self, run_id: str, folder: Path, status: str) -> None:
        """The run's files as artifacts; FINISHED when its status is, else KILLED."""
        for name in _FILES:
            if (folder / name).is_file():
                self.client.log_artifact(run_id, str(folder / name))
        self.client.set_tag(run_id, "status", status)
        self.client.set_terminated(run_id, "FINISHED" if status == "finished" else "KILLED")

    def _experiment(self, uri: str) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return found.experiment_id
        if not uri.startswith("sqlite:///"):
            return self.client.create_experiment(EXPERIMENT)
        database = Path(uri.removeprefix("sqlite:///")).resolve()
        folder = database.with_name(f"{database.stem}-artifacts")
        return self.client.create_experiment(EXPERIMENT, artifact_location=folder.as_uri())


class _Sweep:
    """One sweep on its way into a store."""

    def __init__(self, store: Store, run: Path, results: dict[str, Any]) -> None:
        self.store, self.client, self.run, self.results = store, store.client, run, results
        self.created = int(datetime.fromisoformat(results["created"]).timestamp() * 1000)
        self.key = unquoted(f"{results['run_id']}@{results['created']}")
        self.experiment = store.experiment

    def log(self) -> None:
        tags = {"fastkernels.sweep": self.key, "fastkernels.role": "sweep"}
        run_id = self.store.run(tags, self.results["run_id"], self.created, self._request())
        for record in self.results["ops"]:
            self._log_record(record, run_id)
        records = self.results["ops"]
        num_passed = sum(r["verdict"] == Verdict.PASSED for r in records)
        counts = {"num_judged": len(records), "num_passed": num_passed, "seconds": self.results.get("seconds", 0.0)}
        self.store.log_metrics(run_id, {name: [value] for name, value in counts.items()})
        self.store.end(run_id, self.run, self.results["status"])

    def _request(self) -> dict[str, Any]:
        environment = self.results["environment"]
        gpu = environment.get("gpu", {}).get("name")
        return {
            **self.results["request"],
            "hardware": gpu or environment.get("cpu"),
            "commit": environment.get("commit"),
        }

    def _log_record(self, record: dict[str, Any], parent_id: str) -> None:
        """One judgement; a source that changed since is another run, for MLflow's params cannot change."""
        identity = {
            "mlflow.parentRunId": parent_id,
            "fastkernels.role": "judgement",
            "op": record["op"],
            "set": unquoted(record["implementation"]),
            "source_sha256": record["source_sha256"],
        }
        child = self.store.found(identity)
        if child is None:
            ancestor = self._ancestor(record)
            tags = {**identity, "level": str(record["level"]), **({"parent_sha256": ancestor} if ancestor else {})}
            name = f"{record['op']} ({record['implementation']})"
            child = self.client.create_run(self.experiment, self.created, tags, run_name=name)
            self.client.log_batch(child.info.run_id, params=_params(_record_params(record)))
        run_id = child.info.run_id
        self.store.log_metrics(run_id, _figures(record))
        self.client.log_batch(
            run_id,
            tags=[
                RunTag("verdict", record["verdict"]),
                RunTag("message", record["message"][:_LONGEST]),
                RunTag("speed", ", ".join(t["speed"] for t in _counted(record)) or "none"),
            ],
        )
        if record["source"]:
            self.client.log_text(run_id, record["source"], f"source/{Path(record['source_path']).name}")
        self.client.set_terminated(run_id, "FINISHED")

    def _ancestor(self, record: dict[str, Any]) -> str | None:
        named = _PARENT.search(record["source"])
        if named:
            return named.group(1)
        before = self.client.search_runs(
            [self.experiment],
            _filter({"fastkernels.role": "judgement", "op": record["op"], "set": unquoted(record["implementation"])})
            + f" and attributes.start_time <= {self.created}",
            max_results=20,
            order_by=["attributes.start_time DESC"],
        )
        hashes = (run.data.tags.get("source_sha256") for run in before)
        return next((sha for sha in hashes if sha and sha != record["source_sha256"]), None)


def newest(client: MlflowClient, run_id: str, name: str) -> dict[int, Metric]:
    """The metric that counts at each step of a run."""
    history = client.get_metric_history(run_id, name)
    return {m.step: m for m in sorted(history, key=lambda m: (m.timestamp, m.value))}


def _is_same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _filter(tags: dict[str, str]) -> str:
    return " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())


def unquoted(value: str) -> str:
    """A tag to search by: MLflow's filters know no escape for a quote. No two values have one tag."""
    return value.replace("%", "%25").replace("'", "%27")


def requoted(tag: str) -> str:
    """The value that a tag of unquoted stands for."""
    return tag.replace("%27", "'").replace("%25", "%")


def _params(values: dict[str, Any]) -> list[Param]:
    return [Param(name, str(value)[:_LONGEST]) for name, value in values.items() if value not in (None, "", [])]


def _record_params(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "op": record["op"],
        "level": record["level"],
        "set": record["implementation"],
        "device": record["device"],
        "dtype": ", ".join(sorted({c["dtype"] for c in record["cases"]})),
        "source_sha256": record["source_sha256"],
        "shapes": "; ".join(t["shapes"] for t in record["timings"]),
        "seed": record["seed"],
    }


def _counted(record: dict[str, Any]) -> list[dict[str, Any]]:
    return record["timings"] if record["verdict"] == Verdict.PASSED else []


def _figures(record: dict[str, Any]) -> dict[str, list[float | None]]:
    """passed as 0 or 1, the errors, and each timed case's figures at the step of its number."""
    shares = [g.row_share for g in error_groups(record) if g.row_share is not None]
    return {
        "passed": [float(record["verdict"] == Verdict.PASSED)],
        "max_error": [max_error(record)],
        "worst_share_of_tolerance": [max(shares) if shares else None],
        "seconds": [record["seconds"]],
        **{name: [timing[field] for timing in _counted(record)] for name, field in _METRICS.items()},
    }
