"""An end-to-end run in MLflow: a parent with the command, a child for each side with its figures."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from fastkernels.bench.e2e.metrics import LATENCIES, PIPELINE_LATENCIES
from fastkernels.report.track import Store, default_uri, silent, unquoted  # before MLflow: it keeps MLflow quiet

from mlflow import MlflowClient  # isort: skip

Json = dict[str, Any]
_FIGURES = (
    *("requests_per_s", "steps_per_s", "output_tokens_per_s", "total_tokens_per_s"),
    *("duration_s", "peak_concurrency"),
)
_ENGINE = ("gpu_busy_share", "graph_hit_share", "prefix_hit_share", "num_preemptions", "peak_memory_bytes")


def log_e2e(run: Path, results: Json, uri: str | None = None) -> str:
    """Log the run, or what is new of it; returns the store's URI.

    Errors: MlflowException and whatever the store's driver raises.
    """
    uri = uri or default_uri()
    with silent():
        store = Store(MlflowClient(tracking_uri=uri), uri)
        created = int(datetime.fromisoformat(results["created"]).timestamp() * 1000)
        key = {"fastkernels.e2e": unquoted(f"{results['run_id']}@{results['created']}")}
        environment = results["environment"]
        hardware = environment.get("gpu", {}).get("name") or environment.get("cpu")
        params = {**results["request"], "hardware": hardware, "commit": environment.get("commit")}
        parent = store.run({**key, "fastkernels.role": "e2e"}, results["run_id"], created, params)
        for side in results.get("sides", []):
            _log_side(store, side, {**key, "fastkernels.role": "side", "mlflow.parentRunId": parent}, created)
        store.end(parent, run, results["status"])
    return uri


def _log_side(store: Store, side: Json, tags: dict[str, str], created: int) -> None:
    tags = {**tags, "side": unquoted(side["name"])}
    child = store.run(tags, side["name"], created, {"candidates": side["candidates"]})
    store.log_metrics(child, {name: [value] for name, value in side_metrics(side).items()})
    for repeat in side["repeats"]:
        store.client.set_tag(child, f"digest_{repeat['repeat']}", repeat["digest"])
    store.client.set_terminated(child, "FINISHED" if side["is_complete"] else "KILLED")


def side_metrics(side: Json) -> dict[str, float | None]:
    """Throughput, the engine's figures, and each latency's mean and percentiles in milliseconds."""
    found: dict[str, float | None] = {"startup_seconds": side["startup_seconds"]}
    if side["repeats"]:
        summary = side["summary"]
        found |= {name: summary.get(name) for name in _FIGURES}
        found |= {name: side["engine_summary"].get(name) for name in _ENGINE}
        for key in (*LATENCIES, *PIPELINE_LATENCIES):
            if summary.get(key):
                found |= {f"{key}_{part}_ms": summary[key][part] for part in ("mean", "p50", "p90", "p99")}
        if "goodput" in summary:
            found["goodput_requests_per_s"] = summary["goodput"]["requests_per_s"]
    return found
