"""Scenarios as tasks of a Ray cluster: each asks for as many GPUs as it has ranks; the driver gathers the items."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastkernels.bench.eval.plan import Event, Plan, Tell
from fastkernels.bench.eval.queue import run_in_turn
from fastkernels.errors import EnvironmentProblem, FastKernelsError

INSTALL = "pip install 'fastkernels[ray]'"
_CONNECT_SECONDS = 10.0
_MOST_RETRIES = 2
"""Of a task whose host is lost."""


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

    def run(self, plans: Sequence[Plan], tell: Tell, begins: Callable[[Plan], None] = lambda plan: None) -> None:
        """Errors: EnvironmentProblem for tasks that failed, once all others are done."""
        task = self._ray.remote(evaluate_remotely)
        options = [self._options(plan) for plan in plans]
        waiting = {task.options(**o).remote(p.to_json()): p for o, p in zip(options, plans, strict=True)}
        problems: list[str] = []
        try:
            while waiting:
                for done in self._ray.wait(list(waiting), num_returns=1)[0]:
                    plan = waiting.pop(done)
                    begins(plan)
                    try:
                        events: list[Event] = self._ray.get(done)
                    except self._ray.exceptions.RayError as error:
                        events = [{"event": "problem", "message": str(error)}]
                    problems += [f"{plan.scenario.name}: {e['message']}" for e in events if e["event"] == "problem"]
                    for event in events:
                        if event["event"] == "item":
                            tell(event)
        finally:
            for task_id in waiting:
                self._ray.cancel(task_id)
        if problems:
            raise EnvironmentProblem("\n".join(problems) + "\n`--resume` measures what is missing.")

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


def evaluate_remotely(plan: Mapping[str, Any]) -> list[Event]:
    """On a host of the cluster: the events of the plan's items, and what that host could not do. Ray has set which
    GPUs are visible."""
    events: list[Event] = []
    try:
        run_in_turn([Plan.from_json(plan)], events.append)
    except FastKernelsError as error:
        events.append({"event": "problem", "message": str(error)})
    except Exception as error:  # raised, it would take along the items that were told of before it
        events.append({"event": "problem", "message": f"{type(error).__name__}: {error}"})
    return [event for event in events if event["event"] != "progress"]
