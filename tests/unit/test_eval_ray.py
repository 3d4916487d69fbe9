"""Scenarios over a Ray cluster of two hosts, both of them here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eval_sets import DLRM, SETS, hanging, hanging_set, plan_for, write_manifest

from fastkernels.bench.eval import ray_queue
from fastkernels.bench.eval.hosts import environment_here
from fastkernels.bench.eval.implementations import read_sets
from fastkernels.bench.eval.ray_queue import RayQueue
from fastkernels.bench.eval.run import EvalRun, Watcher, read_manifest, resumed, run_eval
from fastkernels.bench.eval.scenarios import EvalScenario, ScenarioSet, WorkloadPart
from fastkernels.bench.run_folder import RunFolder
from fastkernels.errors import EnvironmentProblem, UsageError
from fastkernels.report.compare import hardware

pytestmark = pytest.mark.slow
cluster_utils = pytest.importorskip("ray.cluster_utils")

Json = dict[str, Any]
PART = (WorkloadPart("examples", 8),)
GCN = EvalScenario("tiny-lightgcn", "float32", 1, PART, PART)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    node = {"num_cpus": 1, "num_gpus": 1, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(num_cpus=1, num_gpus=1)
    yield cluster.address
    cluster.shutdown()


def run_of(tmp_path: Path, address: str | None, *sets: str | Path, scenarios: tuple[EvalScenario, ...] = ()) -> EvalRun:
    chosen = ScenarioSet("mine", scenarios or (DLRM, GCN), num_passes=1)
    manifest = read_manifest(write_manifest(tmp_path / "manifest.json"))
    return EvalRun(chosen, read_sets([str(SETS / name) for name in sets]), "cpu", manifest, ray=address)


def with_hosts(monkeypatch: pytest.MonkeyPatch, cpu_of: Callable[[bool], str], wait: bool = False) -> None:
    """Hosts say what `cpu_of` says of them. is_first: of the two hosts, that whose id comes first.

    wait: the host that is not the first says so once the first one has.
    """

    def remotely(plan: Mapping[str, Any], events: Any) -> None:
        import time

        import ray

        from fastkernels.bench.eval import ray_queue

        here = ray.get_runtime_context().get_node_id()
        is_first = here == min(node["NodeID"] for node in ray.nodes())
        found = {**ray_queue.environment_here("cpu"), "cpu": cpu_of(is_first)}
        ray_queue.environment_here = lambda device: found  # type: ignore[assignment]
        ray_queue.socket.gethostname = lambda: "first" if is_first else "second"  # type: ignore[assignment]
        if wait and not is_first:
            time.sleep(3)
        ray_queue.evaluate_remotely(plan, events)

    monkeypatch.setattr(ray_queue, "evaluate_remotely", remotely)


@pytest.mark.slow
def test_scenarios_are_spread_over_hosts_and_items_come_back(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU a task has a host of its own. The run's environment is theirs, and not the driver's."""
    with_hosts(monkeypatch, lambda is_first: "Xeon of the hosts")
    run = run_of(tmp_path, address, "sound", "crashes")
    folder = run.start(tmp_path / "run")
    assert folder.header()["hosts"] == {}
    told: list[str] = []

    def stage(name: str, text: str, share: float) -> None:
        assert 0.0 <= share <= 1.0
        told.append(f"{name}: {text}")

    def ends(record: Json) -> None:
        told.append(f"{record['item']} ends")

    results = run_eval(run, folder, Watcher(lambda name, *_: told.append(f"{name} begins"), stage, ends))
    assert results["status"] == "finished"
    outcomes = [(i["item"], i["implementation"], i["outcome"]) for i in results["items"]]
    assert outcomes == [
        ("tiny-dlrmv2-float32", "sound", "MEASURED"),
        ("tiny-lightgcn-float32", "sound", "NEVER_CALLED"),
        ("tiny-dlrmv2-float32", "crashes", "INVALID"),
        ("tiny-lightgcn-float32", "crashes", "NEVER_CALLED"),
    ]
    places = [told.index(f"tiny-dlrmv2-float32{what}") for what in (" begins", ": sound: trial", " ends")]
    assert places == sorted(places)
    assert told.count("tiny-dlrmv2-float32 begins") == told.count("tiny-lightgcn-float32 begins") == 1
    assert [line for line in told if line.endswith("restart 3 of 3")]
    assert sum(line.endswith(" ends") for line in told) == len(list((tmp_path / "run" / "items").iterdir())) == 4
    assert results["environment"]["cpu"] == "Xeon of the hosts"
    assert set(results["hosts"]) == {"tiny-dlrmv2-float32", "tiny-lightgcn-float32"}
    with pytest.raises(UsageError, match=r"ran on Xeon of the hosts with \d+ cores; this machine is "):
        resumed(replace(run, ray=None), folder)
    assert resumed(run, folder).seed == run.seed


@pytest.mark.slow
def test_a_host_that_is_unlike_the_others_measures_nothing(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scenarios are neither begun nor in the run; gone on with over hosts that are alike, they are measured."""
    with_hosts(monkeypatch, lambda is_first: "Xeon" if is_first else "EPYC", wait=True)
    run = run_of(tmp_path, address, "sound", scenarios=(DLRM, replace(DLRM, throughput=PART, model="tiny-yolov10")))
    folder = run.start(tmp_path / "run")
    begun: list[str] = []
    with pytest.raises(EnvironmentProblem) as caught:
        run_eval(run, folder, Watcher(lambda name, *_: begun.append(name)))
    (kept,) = folder.items()
    (missing,) = {s.name for s in run.scenarios.scenarios} - {kept["item"]}
    assert begun == [kept["item"]]
    said = str(caught.value)
    assert said.startswith("second has EPYC with ")
    assert "; first has Xeon with " in said
    assert f"not measured are {missing}. " in said
    assert "--resume" in said
    results = folder.results()
    assert (results["status"], results["environment"]["cpu"]) == ("interrupted", "Xeon")
    assert results["hosts"] == {kept["item"]: "first"}

    with_hosts(monkeypatch, lambda is_first: "EPYC")
    with pytest.raises(EnvironmentProblem, match=r"has EPYC with .*; first has Xeon with "):
        run_eval(resumed(run, folder), folder, Watcher())
    assert len(folder.items()) == 1
    with_hosts(monkeypatch, lambda is_first: "Xeon")
    assert {i["item"] for i in run_eval(resumed(run, folder), folder, Watcher())["items"]} == {kept["item"], missing}


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_finished_on_the_hosts(tmp_path: Path, address: str) -> None:
    """Of one scenario whole restarts, of another that hangs nothing; no process stays."""
    hangs = hanging_set(tmp_path / "sets")
    run = run_of(tmp_path, address, "sound", scenarios=(DLRM,))
    run = replace(run, scenarios=replace(run.scenarios, num_passes=400))
    folder = run.start(tmp_path / "run")

    def stage(name: str, text: str, share: float) -> None:
        if text == "sound: restart 2 of 3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_eval(run, folder, Watcher(stage=stage))
    (item,) = folder.items()
    assert (item["is_complete"], item["outcome"]) == (False, "MEASURED")
    assert {p["restart"] for p in item["passes"]} == {0}
    assert folder.results()["status"] == "interrupted"

    def interrupt_when_it_hangs() -> None:
        import _thread

        deadline = time.monotonic() + 60
        while not hanging() and time.monotonic() < deadline:
            time.sleep(0.05)
        _thread.interrupt_main()

    threading.Thread(target=interrupt_when_it_hangs, daemon=True).start()
    with RayQueue(address) as cluster, pytest.raises(KeyboardInterrupt):
        cluster.run([plan_for(DLRM, hangs, pass_seconds=1000.0)], lambda event: None)
    deadline = time.monotonic() + 10
    while hanging() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not hanging()


def test_gpus_are_counted_by_host_and_a_task_that_fails_is_told(address: str) -> None:
    told: list[Any] = []
    plan = plan_for(DLRM, "sound")
    with RayQueue(address) as cluster:
        assert cluster.num_gpus == 1
        lost = replace(plan, sets=(replace(plan.sets[0], sha256="0" * 64),))
        with pytest.raises(EnvironmentProblem, match=r"^tiny-dlrmv2-float32: on .* ended with \d: The set .* changed"):
            cluster.run([lost], told.append)
    assert told == []
    with pytest.raises(EnvironmentProblem, match=r"No Ray cluster answers at 127\.0\.0\.1:9: "):
        RayQueue("127.0.0.1:9")


def test_a_run_that_no_host_has_measured_goes_on_anywhere(tmp_path: Path) -> None:
    """What run.json holds before that is the driver's, and is replaced by that of who measures."""
    run = run_of(tmp_path, "127.0.0.1:9", "crashes", scenarios=(GCN,))
    folder = run.start(tmp_path / "run")
    folder.amend(environment={**folder.header()["environment"], "cpu": "of a driver"})
    here = replace(run, ray=None)
    results = run_eval(resumed(here, RunFolder(folder.path)), folder, Watcher())
    assert hardware(results) == hardware({"environment": environment_here("cpu")})
    assert results["hosts"] is None
