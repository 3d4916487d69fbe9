"""Scenarios over the GPUs of a host, a process each; the devices are names, and the models run on a CPU."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eval_sets import DLRM, hanging, hanging_set, plan_for

from fastkernels.bench.eval.hosts import environment_here
from fastkernels.bench.eval.nursery import kept_environment
from fastkernels.bench.eval.plan import Plan
from fastkernels.bench.eval.queue import GpuQueue
from fastkernels.bench.eval.ray_queue import RayQueue, evaluate_remotely
from fastkernels.bench.eval.scenarios import EvalScenario, WorkloadPart
from fastkernels.env import visible_gpus
from fastkernels.errors import EnvironmentProblem

GCN = EvalScenario("tiny-lightgcn", "float32", 1, (WorkloadPart("examples", 8),), (WorkloadPart("examples", 2),))


def test_a_plan_is_plain_data() -> None:
    plan = plan_for(DLRM, "sound", "late").on(("3", "5"))
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.order("x").gpus == ("3", "5")
    assert (plan.num_gpus, replace(plan, device="cuda").num_gpus) == (0, 1)


def test_gpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(2) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-ab,7")
    assert visible_gpus(3) == ["4", "GPU-ab", "7"]
    monkeypatch.setenv("FASTKERNELS_API_KEY", "secret")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    kept = kept_environment()
    assert "FASTKERNELS_API_KEY" not in kept
    assert (kept["CUDA_VISIBLE_DEVICES"], kept["CUDA_DEVICE_ORDER"]) == ("4, GPU-ab,7", "PCI_BUS_ID")


@pytest.mark.slow
def test_two_slots_share_the_scenarios_and_an_interrupt_ends_them(tmp_path: Path) -> None:
    """Two scenarios on two devices; then one that hangs, interrupted."""
    events: list[dict[str, Any]] = []
    begun: list[str] = []
    queue = GpuQueue(["0", "1"], events.append, lambda plan: begun.append(plan.scenario.name))
    queue.run([plan_for(DLRM, "sound"), plan_for(GCN, "sound")])
    items = {e["record"]["item"]: e["record"]["outcome"] for e in events if e["event"] == "item"}
    assert items == {"tiny-dlrmv2-float32": "MEASURED", "tiny-lightgcn-float32": "NEVER_CALLED"}
    assert begun == ["tiny-dlrmv2-float32", "tiny-lightgcn-float32"]

    queue = GpuQueue(["0"], events.append)
    threading.Thread(target=_interrupt_when_it_hangs, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        queue.run([plan_for(DLRM, hanging_set(tmp_path), pass_seconds=1000.0)])
    deadline = time.monotonic() + 10
    while hanging() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not hanging()


def test_a_slot_that_ends_is_told_once_the_others_are_done() -> None:
    """Its set has changed since it was read."""
    plan = plan_for(DLRM, "sound")
    lost = replace(plan, sets=(replace(plan.sets[0], sha256="0" * 64),))
    with pytest.raises(EnvironmentProblem, match=r"tiny-dlrmv2-float32 on GPU 0 ended with 3: .*has changed"):
        GpuQueue(["0"], lambda event: None).run([lost])


class Heard:
    """Stands for the queue of a cluster."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def put(self, event: tuple[str, dict[str, Any]]) -> None:
        self.events.append(event)


def test_a_task_on_another_host_says_what_it_runs_on_and_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each event as it happens, items before the trouble too."""

    class Slots(GpuQueue):
        def run(self, plans: Any) -> None:
            self._tell({"event": "item", "record": {}})
            self.problems.append("No space left on device")
            raise EnvironmentProblem("No space left on device `--resume` measures what is missing.")

    monkeypatch.setattr("fastkernels.bench.eval.ray_queue.GpuQueue", Slots)
    heard, plan = Heard(), plan_for(DLRM, "sound")
    evaluate_remotely(plan.to_json(), heard)
    (_, host), (_, item), (_, problem) = heard.events
    assert {name for name, _ in heard.events} == {"tiny-dlrmv2-float32"}
    assert (host["event"], host["environment"]) == ("host", environment_here("cpu"))
    assert item == {"event": "item", "record": {}}
    assert problem == {"event": "problem", "message": f"on {host['host']}: No space left on device"}


def _interrupt_when_it_hangs() -> None:
    deadline = time.monotonic() + 60
    while not hanging() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    "cores",
    [(0, 8, 8), (8, 64), (8, 32, 64, 64), (1, 1), (4,), (3, 5)],
    ids=["a head without CPUs", "two sizes", "three sizes", "one core each", "one host", "odd"],
)
def test_no_host_of_a_cluster_has_two_scenarios_at_once_on_its_cpu(cores: tuple[int, ...]) -> None:
    """And one at least has one. A host that offers no CPU to tasks does not name it at all."""
    queue = RayQueue.__new__(RayQueue)
    queue._hosts = lambda: [{"memory": 1.0} | ({"CPU": float(n)} if n else {}) for n in cores]  # type: ignore[method-assign]
    num = queue._options(plan_for(DLRM, "sound"))["num_cpus"]
    assert max(n // num for n in cores) == 1
