"""Scenarios one after another in this process, or several at once on the GPUs of this host, a process each."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from fastkernels.bench.eval.evaluation import Evaluation
from fastkernels.bench.eval.plan import Plan, Tell
from fastkernels.bench.eval.processes import Nursery
from fastkernels.errors import EXIT_ENVIRONMENT, EnvironmentProblem, FastKernelsError

LAST_SECONDS = 20.0
"""For a slot to tell what it has when it is interrupted."""

_WAIT_SECONDS = 0.2
"""A wait without an end is not left when another thread of the process is handed the signal."""

_LAST_WORDS = 1500

NO_GPU = ""
"""A slot of a machine whose GPUs are not used."""


def run_in_turn(plans: Sequence[Plan], tell: Tell, begins: Callable[[Plan], None] = lambda plan: None) -> None:
    """Errors: those of the machine; what was told before is kept by who hears it."""
    if not plans:
        return
    with Nursery() as nursery:
        for plan in plans:
            begins(plan)
            Evaluation(plan, nursery, tell).run()


@dataclass
class _Slot:
    """A process with one scenario, and the devices that it has. log: its standard error."""

    plan: Plan
    gpus: tuple[str, ...]
    process: subprocess.Popen[str]
    log: TextIO


class GpuQueue:
    """The largest scenarios first; each starts as soon as as many GPUs are free as it has ranks.

    gpus: as CUDA_VISIBLE_DEVICES has them. problems: of slots that ended without their items, a sentence each.
    """

    def __init__(self, gpus: Sequence[str], tell: Tell, begins: Callable[[Plan], None] = lambda plan: None) -> None:
        self._free, self._tell, self._begins = list(gpus), tell, begins
        self._slots: list[_Slot] = []
        self._events: queue.Queue[tuple[_Slot, dict[str, Any]]] = queue.Queue()
        self.problems: list[str] = []

    def run(self, plans: Sequence[Plan]) -> None:
        """Errors: EnvironmentProblem for slots that ended without their items, once all others are done."""
        waiting = sorted(plans, key=lambda plan: -plan.num_gpus)
        try:
            while waiting or self._slots:
                while waiting and max(1, waiting[0].num_gpus) <= len(self._free):
                    self._start(waiting.pop(0))
                self._hear_next(seconds=_WAIT_SECONDS)
        except KeyboardInterrupt:
            self._interrupt()
            raise
        finally:
            for slot in self._slots:
                slot.process.kill()
                slot.process.wait()
        if self.problems:
            raise EnvironmentProblem(" ".join(self.problems) + " `--resume` measures what is missing.")

    def _start(self, plan: Plan) -> None:
        self._begins(plan)
        count = max(1, plan.num_gpus)
        gpus, self._free = tuple(self._free[:count]), self._free[count:]
        log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed when it was read
        process = subprocess.Popen(
            [sys.executable, "-m", "fastkernels.bench.eval.queue"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        slot = _Slot(plan, gpus, process, log)
        self._slots.append(slot)
        assert process.stdin is not None
        process.stdin.write(json.dumps(plan.on(gpus).to_json()) + "\n")
        process.stdin.close()
        threading.Thread(target=self._read, args=(slot,), daemon=True).start()

    def _read(self, slot: _Slot) -> None:
        """Of one slot, until it ends."""
        assert slot.process.stdout is not None
        for line in slot.process.stdout:
            with contextlib.suppress(ValueError):
                self._events.put((slot, json.loads(line)))
        exit_code = slot.process.wait()
        with slot.log:
            slot.log.seek(0)
            words = slot.log.read()[-_LAST_WORDS:].strip()
        self._events.put((slot, {"event": "end", "exit_code": exit_code, "words": words}))

    def _hear_next(self, seconds: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._hear(*self._events.get(timeout=seconds))

    def _hear(self, slot: _Slot, event: dict[str, Any]) -> None:
        if event["event"] != "end":
            self._tell(event)
            return
        self._slots.remove(slot)
        self._free += slot.gpus
        if event["exit_code"]:
            where = "" if slot.gpus == (NO_GPU,) else f" on GPU {', '.join(slot.gpus)}"
            name = slot.plan.scenario.name
            self.problems.append(f"{name}{where} ended with {event['exit_code']}: {event['words']}")

    def _interrupt(self) -> None:
        for slot in self._slots:
            with contextlib.suppress(ProcessLookupError):
                slot.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + LAST_SECONDS
        while self._slots and time.monotonic() < deadline:
            self._hear_next(seconds=0.1)


def main() -> None:
    """A slot: a plan on stdin, events as JSON lines on stdout."""
    from fastkernels.harness import sandbox

    sandbox.die_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # a Ray worker's children begin with it blocked
    plan = Plan.from_json(json.loads(sys.stdin.readline()))

    def tell(event: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()

    try:
        run_in_turn([plan], tell)
    except FastKernelsError as error:
        sys.stderr.write(str(error))
        raise SystemExit(error.exit_code or EXIT_ENVIRONMENT) from None


if __name__ == "__main__":
    main()
