"""Offline throughput and the latency of a fixed batch: LLM.generate or a Pipeline, repeated in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastkernels.bench.e2e.busy import BusySampler
from fastkernels.bench.e2e.scenario import Scenario
from fastkernels.errors import FastKernelsError

Json = dict[str, Any]


class SideError(FastKernelsError):
    """An engine could not be built, or ended; `exit_code` is that of the reason."""

    def __init__(self, message: str, exit_code: int = FastKernelsError.exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Side:
    """One implementation of the model and what was measured of it. tokens: of each repeat, by the request's index, None
    of one that was not answered.

    name: "baseline", the names of the candidate sets, or a server's URL. outputs: of a candidate for a model that makes
    no tokens, how its results agree with the baseline's, by output name.
    """

    name: str
    candidates: tuple[str, ...] = ()
    startup_seconds: float | None = None
    engine: Json = field(default_factory=dict)
    repeats: list[Json] = field(default_factory=list)
    replacements: list[Json] = field(default_factory=list)
    tokens: dict[int, list[list[int] | None]] = field(default_factory=dict)
    outputs: list[Json] = field(default_factory=list)
    is_complete: bool = False


@dataclass(frozen=True)
class Watcher:
    """Is told how far a side is: a description, then done and total."""

    stage: Callable[[str], None] = lambda text: None
    progress: Callable[[int, int], None] = lambda done, total: None


def run_offline(
    scenario: Scenario,
    side: Side,
    num_repeats: int,
    warmup_share: float,
    watcher: Watcher,
    keeps: Callable[[], None],
    outputs: Path | None = None,
) -> None:
    """Fill `side`, a repeat at a time; `keeps` is called after each. outputs: where results that are no tokens go.

    Errors: SideError with the engine's own message and exit code.
    """
    with tempfile.TemporaryDirectory(prefix="fastkernels-e2e-") as temporary:
        folder = Path(temporary)
        order = {
            "scenario": asdict(scenario), "candidates": side.candidates, "num_repeats": num_repeats,
            "warmup_share": warmup_share, "tokens": str(folder), "outputs": outputs and str(outputs),
            "spawned": time.time(),
        }  # fmt: skip
        path = folder / "order.json"
        path.write_text(json.dumps(order))
        watcher.stage(f"{side.name}: starting")
        with BusySampler(scenario.gpus) as busy:
            for event in _events(path):
                _take(event, side, folder, watcher, busy, num_repeats)
                if event["event"] == "repeat":
                    keeps()
    if not side.is_complete:
        raise SideError(f"{side.name} on {scenario.workload} ended before it was done.")


def _take(event: Json, side: Side, folder: Path, watcher: Watcher, busy: BusySampler, num_repeats: int) -> None:
    kind = event.pop("event")
    if kind == "ready":
        side.startup_seconds, side.engine = event["startup_seconds"], event["engine"]
        watcher.stage(f"{side.name}: warm-up")
    elif kind == "progress":
        number = event["repeat"]
        watcher.stage(f"{side.name}: {'warm-up' if number < 0 else f'repeat {number + 1} of {num_repeats}'}")
        watcher.progress(event["done"], event["total"])
    elif kind == "repeat":
        tokens = folder / f"{event['repeat']}.json"
        if tokens.is_file():
            side.tokens[event["repeat"]] = json.loads(tokens.read_text())
        ended = event.pop("ended")
        side.repeats.append({**event, "gpu_busy_share": busy.share(ended - event["seconds"], ended)})
    elif kind == "end":
        side.replacements, side.is_complete = event["replacements"], True
    else:
        raise SideError(event["message"], event["exit_code"])
    event["event"] = kind


def _events(order: Path) -> Iterator[Json]:
    """What the worker tells, until it ends. Errors: SideError with its last words."""
    command = [sys.executable, "-m", "fastkernels.bench.e2e.offline_worker", str(order)]
    with tempfile.TemporaryFile("w+", errors="replace") as words:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)
            if process.wait():
                words.seek(0)
                raise SideError(f"The engine's process ended with {process.returncode}: {words.read()[-1500:].strip()}")
        finally:
            process.terminate()
            process.wait()
