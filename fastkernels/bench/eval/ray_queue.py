"""Scenarios as tasks of a Ray cluster: each asks for as many GPUs as it has ranks; the driver gathers the items."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastkernels.bench.eval.hosts import environment_here
from fastkernels.bench.eval.plan import Event, Plan, Tell
from fastkernels.bench.eval.queue import LAST_SECONDS, NO_GPU, GpuQueue
from fastkernels.env import visible_gpus
from fastkernels.errors import EnvironmentProblem

Admit = Callable[[str, str, dict[str, Any]], str]
"""(scenario, host, its environment) -> why its items would not mix with the others, "" when they do."""

INSTALL = "pip install 'fastkernels[ray]'"
_CONNECT_SECONDS = 10.0
_MOST_RETRIES = 2
"""Of a task whose host is lost."""

_WAIT_SECONDS = 0.2
_LAST_SECONDS = LAST_SECONDS + 10.0
"""For the tasks to tell what they have when the run is interrupted: as long as they wait for theirs, and the way."""


class RayQueue:
    """address: as ray.init takes it, "auto" for the cluster that this host is part of; use as a context manager.

    Hosts have FastKernels installed, and see the sets and checkpoints at the same paths; a set whose files differ there
    is refused. Errors: EnvironmentProblem when Ray is not installed or no cluster answers.
    """

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ImportError as error:
            raise EnvironmentProblem(f"--ray needs Ray: {INSTALL}.") from error
        self._ray = ray
        _check_that_it_listens(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, ignore_reinit_error=True)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise EnvironmentProblem(f"No Ray cluster answers at {address}: {error}") from error

    def __enter__(self) -> RayQueue:
        return self

    def __exit__(self, *error: object) -> None:
        self._ray.shutdown()

    @property
    def num_gpus(self) -> int:
        """Of the host that has the most: ranks of one engine are on one host."""
        return max((int(resources.get("GPU", 0)) for resources in self._hosts()), default=0)

    def run(
        self,
        plans: Sequence[Plan],
        tell: Tell,
        begins: Callable[[Plan], None] = lambda plan: None,
        admit: Admit = lambda scenario, host, environment: "",
    ) -> None:
        """Events as they happen; an interrupt ends the tasks, once what they have was told.

        A scenario on a host that is not admitted is cancelled untold, and none begins after it.
        Errors: EnvironmentProblem for hosts that were not admitted and tasks that failed, once all others are done.
        """
        _Run(self._ray, _Told(tell, begins, admit)).run(plans, [self._options(plan) for plan in plans])

    def _options(self, plan: Plan) -> dict[str, Any]:
        """On a CPU a task has a whole host: two at once would measure each other. So it asks for more than half of the
        largest host's cores, and hosts of no more than that get none."""
        if plan.num_gpus:
            return {"num_gpus": plan.num_gpus, "num_cpus": 1, "max_retries": _MOST_RETRIES}
        cores = [int(resources.get("CPU", 0)) for resources in self._hosts()]
        most = max(cores, default=0)
        return {"num_cpus": min((n for n in cores if 2 * n > most), default=1), "max_retries": _MOST_RETRIES}

    def _hosts(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]


def _check_that_it_listens(address: str) -> None:
    """Ray itself tries for a minute. Errors: EnvironmentProblem."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise EnvironmentProblem(f"No Ray cluster answers at {address}: {error.strerror or error}.") from error


@dataclass
class _Told:
    """What is told of, and what came of it. refused: of hosts that were not admitted, a sentence each."""

    tell: Tell
    begins: Callable[[Plan], None]
    admit: Admit
    begun: set[str] = field(default_factory=set)
    unheard: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def hear(self, plan: Plan, event: Event) -> None:
        name = plan.scenario.name
        if event["event"] == "host":
            self._hear_of_host(plan, event)
        elif name in self.unheard:
            return
        elif event["event"] == "problem":
            self.problems.append(f"{name}: {event['message']}")
        else:
            self.tell(event)

    def _hear_of_host(self, plan: Plan, event: Event) -> None:
        """A task whose host was lost is begun again on another one."""
        name = plan.scenario.name
        if self.refused and name not in self.begun:
            self.unheard.add(name)
            return
        why = self.admit(name, event["host"], event["environment"])
        if why:
            self.unheard.add(name)
            self.begun.discard(name)
            self.refused.append(why)
        elif name not in self.begun:
            self.begun.add(name)
            self.begins(plan)


class _Run:
    """Tasks of one run, and the queue of their events, which lives on the driver's host."""

    def __init__(self, ray: Any, told: _Told) -> None:
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray, self._told = ray, told
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._plans: dict[str, Plan] = {}
        self._waiting: dict[Any, Plan] = {}

    def run(self, plans: Sequence[Plan], options: Sequence[Mapping[str, Any]]) -> None:
        """options: of each plan's task. Errors: see RayQueue.run."""
        task = self._ray.remote(evaluate_remotely)
        self._plans = {plan.scenario.name: plan for plan in plans}
        asked = [(task.options(**o), plan) for plan, o in zip(plans, options, strict=True)]
        self._waiting = {task.remote(plan.to_json(), self._events): plan for task, plan in asked}
        try:
            while self._waiting:
                self._hear(_WAIT_SECONDS)
                if self._told.refused:
                    self._cancel([t for t, p in self._waiting.items() if p.scenario.name not in self._told.begun])
        except BaseException:
            self._interrupt()
            raise
        finally:
            self._events.shutdown(force=True)
        problems = [*self._stopped(), *self._told.problems]
        if problems:
            raise EnvironmentProblem("\n".join(problems) + "\n`--resume` measures what is missing.")

    def _hear(self, seconds: float) -> None:
        """Events, then the tasks that have ended: theirs are heard before."""
        ended = self._ray.wait(list(self._waiting), num_returns=1, timeout=seconds)[0]
        for name, event in self._events.get_nowait_batch(self._events.qsize()):
            self._told.hear(self._plans[name], event)
        for task in ended:
            plan = self._waiting.pop(task)
            try:
                self._ray.get(task)
            except self._ray.exceptions.TaskCancelledError:
                pass
            except self._ray.exceptions.RayError as error:
                self._told.hear(plan, {"event": "problem", "message": str(error)})

    def _cancel(self, tasks: Sequence[Any]) -> None:
        for task in tasks:
            self._ray.cancel(task, recursive=False)

    def _interrupt(self) -> None:
        self._cancel(list(self._waiting))
        deadline = time.monotonic() + _LAST_SECONDS
        while self._waiting and time.monotonic() < deadline:
            self._hear(_WAIT_SECONDS)
        for task in self._waiting:
            self._ray.cancel(task, force=True)

    def _stopped(self) -> list[str]:
        """Sentences on what was not begun because a host is unlike the others."""
        if not self._told.refused:
            return []
        missing = [name for name in self._plans if name not in self._told.begun]
        return [
            f"{'; '.join(dict.fromkeys(self._told.refused))}. Figures of unlike machines do not mix in one run: not "
            f"measured are {', '.join(missing)}. Go on with a cluster whose hosts are alike."
        ]


def evaluate_remotely(plan: Mapping[str, Any], events: Any) -> None:
    """On a host of the cluster: what it is, the events of the plan's items, and what that host could not do, each to
    `events` (a ray.util.queue.Queue) with the scenario's name. Ray has set which GPUs are visible.

    The scenario runs in a process of its own: what interrupts a task waits for the end of a call, and this does not.
    """
    known = Plan.from_json(plan)
    name = known.scenario.name

    def tell(event: Event) -> None:
        events.put((name, event))

    host, found = socket.gethostname(), environment_here(known.device)
    tell({"event": "host", "host": host, "environment": found})
    slots = GpuQueue(visible_gpus(known.num_gpus) if known.num_gpus else [NO_GPU], tell)
    try:
        slots.run([known])
    except EnvironmentProblem:
        for problem in slots.problems:
            tell({"event": "problem", "message": f"on {host}: {problem}"})
