"""An eval run in MLflow: a parent, a child for each set with its scores, a grandchild for each item.

A kernels run of the same set content (tag set_sha256) is nested under the set: what its ops do alone stands beside what
the models do with them. Whichever is logged later finds the other.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from fastkernels.report.compare import hardware
from fastkernels.report.eval_view import ItemView, item_views, set_scores
from fastkernels.report.track import Store, default_uri, silent, unquoted  # before MLflow: it keeps MLflow quiet

from mlflow import MlflowClient  # isort: skip
from mlflow.entities import RunTag  # isort: skip

Json = dict[str, Any]
_LONGEST = 500
_PARENT = "mlflow.parentRunId"


def log_eval(run: Path, results: Json, uri: str | None = None) -> str:
    """Log the run, or what is new of it; returns the store's URI.

    Errors: MlflowException and whatever the store's driver raises.
    """
    uri = uri or default_uri()
    with silent():
        store = Store(MlflowClient(tracking_uri=uri), uri)
        created = int(datetime.fromisoformat(results["created"]).timestamp() * 1000)
        key = {"fastkernels.eval": unquoted(f"{results['run_id']}@{results['created']}")}
        manifest = results.get("manifest", {})
        params = {
            **results["request"],
            "hardware": hardware(results),
            "commit": results["environment"].get("commit"),
            "scenario_set": results.get("scenario_set"),
            "manifest": manifest.get("version"),
        }
        parent = store.run({**key, "fastkernels.role": "eval"}, results["run_id"], created, params)
        views, scores = item_views(results), set_scores(results)
        for record in results.get("sets", []):
            chosen = [v for v in views if v.record["implementation"] == record["name"]]
            _log_set(store, key, parent, record, scores.get(record["name"]), chosen, created)
        store.end(parent, run, results["status"])
    return uri


def _log_set(
    store: Store,
    key: dict[str, str],
    parent: str,
    record: Json,
    score: Json | None,
    views: list[ItemView],
    created: int,
) -> None:
    tags = {**key, "fastkernels.role": "eval_set", _PARENT: parent, "set": unquoted(record["name"])}
    child = store.run({**tags, "set_sha256": record["sha256"]}, record["name"], created, {"ops": record["ops"]})
    for view in views:
        _log_item(store, key, child, view, created)
    _log_metrics(store, child, set_metrics(score) if score is not None else {})
    nest_sweeps(store, record["sha256"], child)
    store.client.set_terminated(child, "FINISHED")


def _log_item(store: Store, key: dict[str, str], parent: str, view: ItemView, created: int) -> None:
    record = view.record
    tags = {**key, "fastkernels.role": "eval_item", _PARENT: parent, "item": unquoted(record["item"])}
    params = {name: record[name] for name in ("model", "architecture", "family", "dtype", "num_ranks")}
    name = f"{record['item']} ({record['implementation']})"
    child = store.run({**tags, "set": unquoted(record["implementation"])}, name, created, params)
    _log_metrics(store, child, item_metrics(view))
    words = {
        "outcome": view.verdict,
        "reason": record["reason"],
        "speed": view.speed or "none",
        "message": record["message"][:_LONGEST],
        "ops_called": ", ".join(r.op for r in view.called)[:_LONGEST],
    }
    store.client.log_batch(child, tags=[RunTag(key, value) for key, value in words.items()])
    store.client.set_terminated(child, "FINISHED")


def set_metrics(score: Json) -> dict[str, float | None]:
    """Deployable speedup with its interval, validity, and MacroEval at its three lambdas."""
    found = {f"deployable_{name}": score["deployable"][name] for name in ("speedup", "low", "high", "validity")}
    for blend, values in score["macroeval"].items():
        found |= {f"{name}_{blend}": values[name] for name in ("score", "speedup")}
    main = score["macroeval"]["0.5"]
    return {**found, **{name: main[name] for name in ("correctness", "coverage", "coverage_macro")}}


def item_metrics(view: ItemView) -> dict[str, float | None]:
    """valid as 0 or 1, correctness, and the speedups where they were measured."""
    found: dict[str, float | None] = {
        "valid": float(view.is_valid),
        "correctness": view.correctness,
        "worst_discrepancy": view.worst,
        "noise_floor": view.item.noise_floor,
        "seconds": view.record["seconds"],
    }
    for name in ("speedup", "throughput", "latency"):
        interval = getattr(view, name)
        if interval is not None:
            found |= {name: interval.ratio, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found


def nest_sweeps(store: Store, set_sha256: str, parent: str) -> None:
    """Put the kernels runs of this set content under an evaluation of it; one has one parent, the latest."""
    tags = f"tags.`fastkernels.role` = 'sweep' and tags.`set_sha256` = '{set_sha256}'"
    for run in store.client.search_runs([store.experiment], tags):
        store.client.set_tag(run.info.run_id, _PARENT, parent)


def nest_sweep(results: Json, uri: str | None = None) -> None:
    """Tag a kernels run of one set, logged before, with the set's content, and put it under an evaluation of that
    content, where there is one.

    Errors: MlflowException and whatever the store's driver raises.
    """
    sets = results.get("sets", [])
    if len(sets) != 1:
        return
    uri = uri or default_uri()
    with silent():
        store = Store(MlflowClient(tracking_uri=uri), uri)
        key = unquoted(f"{results['run_id']}@{results['created']}")
        sweep = store.found({"fastkernels.role": "sweep", "fastkernels.sweep": key})
        if sweep is None:
            return
        store.client.set_tag(sweep.info.run_id, "set_sha256", sets[0]["sha256"])
        above = store.found({"fastkernels.role": "eval_set", "set_sha256": sets[0]["sha256"]})
        if above is not None:
            store.client.set_tag(sweep.info.run_id, _PARENT, above.info.run_id)


def _log_metrics(store: Store, run_id: str, figures: dict[str, float | None]) -> None:
    store.log_metrics(run_id, {name: [value] for name, value in figures.items()})
