"""Scenarios over a Ray cluster of two hosts, both of them here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from eval_sets import DLRM, SETS, plan_for, write_manifest

from fastkernels.bench.eval.implementations import read_sets
from fastkernels.bench.eval.ray_queue import RayQueue
from fastkernels.bench.eval.run import EvalRun, Watcher, read_manifest, run_eval
from fastkernels.bench.eval.scenarios import EvalScenario, ScenarioSet, WorkloadPart
from fastkernels.errors import EnvironmentProblem

pytestmark = pytest.mark.slow
cluster_utils = pytest.importorskip("ray.cluster_utils")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    node = {"num_cpus": 1, "num_gpus": 1, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(num_cpus=1, num_gpus=1)
    yield cluster.address
    cluster.shutdown()


def test_scenarios_are_spread_over_hosts_and_items_come_back(tmp_path: Any, address: str) -> None:
    """On a CPU a task has a host of its own."""
    part = (WorkloadPart("examples", 8),)
    scenarios = ScenarioSet("mine", (DLRM, EvalScenario("tiny-lightgcn", "float32", 1, part, part)), num_passes=1)
    sets = read_sets([str(SETS / "sound"), str(SETS / "crashes")])
    run = EvalRun(scenarios, sets, "cpu", read_manifest(write_manifest(tmp_path / "manifest.json")), ray=address)
    folder = run.start(tmp_path / "run")
    ended: list[str] = []
    results = run_eval(run, folder, Watcher(ends=lambda record: ended.append(record["item"])))
    assert results["status"] == "finished"
    outcomes = [(i["item"], i["implementation"], i["outcome"]) for i in results["items"]]
    assert outcomes == [
        ("tiny-dlrmv2-float32", "sound", "MEASURED"),
        ("tiny-lightgcn-float32", "sound", "NEVER_CALLED"),
        ("tiny-dlrmv2-float32", "crashes", "INVALID"),
        ("tiny-lightgcn-float32", "crashes", "NEVER_CALLED"),
    ]
    assert sorted(ended) == ["tiny-dlrmv2-float32"] * 2 + ["tiny-lightgcn-float32"] * 2
    assert len(list((tmp_path / "run" / "items").iterdir())) == 4


def test_gpus_are_counted_by_host_and_a_task_that_fails_is_told(address: str) -> None:
    told: list[Any] = []
    plan = plan_for(DLRM, "sound")
    with RayQueue(address) as cluster:
        assert cluster.num_gpus == 1
        lost = replace(plan, sets=(replace(plan.sets[0], sha256="0" * 64),))
        with pytest.raises(EnvironmentProblem, match=r"^tiny-dlrmv2-float32: The set .* has changed"):
            cluster.run([lost], told.append)
    assert told == []
    with pytest.raises(EnvironmentProblem, match=r"No Ray cluster answers at 127\.0\.0\.1:9: "):
        RayQueue("127.0.0.1:9")
