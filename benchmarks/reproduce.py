"""Makes the files of results/ anew, as plan.toml says, on every GPU of this machine at once and within a deadline.

    python benchmarks/reproduce.py --list
    python benchmarks/reproduce.py 'h200/*' --out DIR --gpus 0 1 --deadline 570 --vllm-site SITE
    python benchmarks/reproduce.py 'cpu/soak*' --out DIR

The first words are files of results/, or patterns. Each GPU takes one entry of the plan after another; what needs
several comes first, and what needs none runs alone. A step begins only where its time is left; one that takes twice its
time and half a minute is interrupted, and all are at the deadline, which lets a script keep what it has. DIR/state.json
says what was done, so that the same command goes on where it ended; DIR/logs has what steps said. --readme writes
README's table.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE / "README.md"
MARKS = ("<!-- made by reproduce.py --readme -->\n", "<!-- end -->\n")
GRACE_SECONDS = 15.0
"""From a step's interrupt to its end by force."""
DONE, FAILED, ENDED, WAITING = "done", "failed", "ended at its time", "not begun"


@dataclass(frozen=True)
class Entry:
    """Files of results/ and the commands that make them. seconds: about how long each takes. each: names that stand for
    {each} in file and steps, one file a name."""

    file: str
    what: str
    each: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    seconds: tuple[float, ...] = ()
    gpus: int = 1
    is_cold: bool = False
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.seconds):
            raise ValueError(f"{self.file} has {len(self.steps)} steps and the seconds of {len(self.seconds)}.")

    def one_by_one(self) -> list[Entry]:
        if not self.each:
            return [self]
        places = [{"each": name} for name in self.each]
        steps = [tuple(filled(step, place) for step in self.steps) for place in places]
        return [
            replace(self, file=filled(self.file, place), steps=own, each=())
            for place, own in zip(places, steps, strict=True)
        ]

    @property
    def num_gpus(self) -> int:
        return self.gpus if self.file.startswith("h200/") else 0


def read_plan(path: Path = HERE / "plan.toml") -> list[Entry]:
    """Errors: TypeError of an unknown field, ValueError of steps without seconds."""
    rows = tomllib.loads(path.read_text())["result"]
    return [Entry(**{key: tuple(v) if isinstance(v, list) else v for key, v in row.items()}) for row in rows]


def filled(step: str, places: Mapping[str, str]) -> str:
    for name, place in places.items():
        step = step.replace(f"{{{name}}}", place)
    return step


def table(plan: Sequence[Entry]) -> str:
    """The plan as README shows it."""
    lines = ["| result | made by |", "|---|---|"]
    for entry in plan:
        file = filled(entry.file, {"each": "NAME"})
        places = {"out": f"benchmarks/results/{file}", "dir": "DIR", "vllm": "SITE", "each": "NAME"}
        commands = ", then ".join(f"`{filled(step, places)}`" for step in entry.steps)
        names = f" (NAME: {', '.join(entry.each)})" if entry.each else ""
        lines.append(f"| `results/{file}` | {commands}{': ' if commands else ''}{entry.what}{names} |")
    return "\n".join(lines) + "\n"


def with_table(text: str, rows: str) -> str:
    """README with the table between its marks."""
    before, rest = text.split(MARKS[0])
    return before + MARKS[0] + rows + MARKS[1] + rest.split(MARKS[1])[1]


class State:
    """What was done, by step; written after each."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        self.steps: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    def facts(self, entry: Entry, step: str) -> dict[str, Any]:
        return self.steps.get(f"{entry.file}: {step}", {"status": WAITING})

    def is_done(self, entry: Entry, step: str) -> bool:
        return self.facts(entry, step)["status"] == DONE

    def add(self, entry: Entry, step: str, **facts: Any) -> None:
        with self._lock:
            self.steps[f"{entry.file}: {step}"] = facts
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps(self.steps, indent=1) + "\n")
            new.replace(self.path)


class Run:
    """The entries that are to be made, and the streams that take them."""

    def __init__(self, entries: Sequence[Entry], out: Path, seconds: float, places: Mapping[str, str]) -> None:
        self.out, self.places, self.end = out, places, time.monotonic() + seconds
        (out / "logs").mkdir(parents=True, exist_ok=True)
        self.state = State(out / "state.json")
        self.waiting = [e for e in entries if not all(self.state.is_done(e, step) for step in e.steps)]
        self.is_stopped = False
        self._lock = threading.Lock()

    @property
    def seconds_left(self) -> float:
        return 0.0 if self.is_stopped else self.end - time.monotonic()

    def stream(self, devices: Sequence[int], takes: Callable[[Entry], bool]) -> None:
        """Makes one entry after another on these GPUs, until none is left that it takes."""
        while (entry := self._next(takes)) is not None:
            for number, step in enumerate(entry.steps):
                if not self.state.is_done(entry, step) and not self._make(entry, number, devices):
                    break

    def _next(self, takes: Callable[[Entry], bool]) -> Entry | None:
        with self._lock:
            for entry in self.waiting:
                if takes(entry) and self._first_seconds(entry) <= self.seconds_left:
                    self.waiting.remove(entry)
                    return entry
        return None

    def _first_seconds(self, entry: Entry) -> float:
        return next(
            s for step, s in zip(entry.steps, entry.seconds, strict=True) if not self.state.is_done(entry, step)
        )

    def _make(self, entry: Entry, number: int, devices: Sequence[int]) -> bool:
        """Whether the step was done."""
        step, seconds = entry.steps[number], entry.seconds[number]
        if seconds > self.seconds_left:
            return False
        name = f"{entry.file.removesuffix('.json').replace('/', '-').replace('*', 'all')}-{number + 1}"
        target = self.out / "results" / entry.file
        target.parent.mkdir(parents=True, exist_ok=True)
        command = filled(step, {"out": str(target), "dir": str(self.out), **self.places})
        program, *words = shlex.split(command)
        words = [*_program(program), *words]
        _say(f"{name} begins on GPU {' '.join(map(str, devices)) or 'none'}, about {seconds:.0f} s")
        started = time.monotonic()
        code, was_ended = self._wait(words, name, self._environment(entry, name, devices), 2 * seconds + 30)
        took = time.monotonic() - started
        status = ENDED if was_ended else DONE if code == 0 else FAILED
        self.state.add(
            entry, step, status=status, seconds=round(took, 1), code=code, gpus=list(devices), log=f"logs/{name}.txt"
        )
        _say(f"{name} {status} after {took:.0f} s" + (f", exit code {code}" if code else ""))
        return status == DONE

    def _environment(self, entry: Entry, name: str, devices: Sequence[int]) -> dict[str, str]:
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
        if entry.is_cold:
            cache = self.out / "caches" / name
            shutil.rmtree(cache, ignore_errors=True)
            environment["TRITON_CACHE_DIR"] = str(cache)
        return environment

    def _wait(self, words: list[str], name: str, environment: dict[str, str], most: float) -> tuple[int, bool]:
        """The exit code, and whether the step's time was over; its whole process group is gone after it."""
        end = time.monotonic() + min(most, self.seconds_left)
        with (self.out / "logs" / f"{name}.txt").open("w") as log:
            process = subprocess.Popen(
                words, cwd=HERE.parent, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            while process.poll() is None and time.monotonic() < min(end, self.end) and not self.is_stopped:
                time.sleep(0.05)
            was_ended = process.poll() is None
            if was_ended:
                os.kill(process.pid, signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return process.wait(), was_ended


def _program(word: str) -> list[str]:
    return {"python": [sys.executable], "fastkernels": [sys.executable, "-m", "fastkernels"]}.get(word, [word])


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def make(run: Run, gpus: Sequence[int]) -> None:
    """Several GPUs' entries first, then a stream a GPU, then what needs none."""
    counts = sorted({entry.num_gpus for entry in run.waiting if 1 < entry.num_gpus <= len(gpus)}, reverse=True)
    streams: list[list[tuple[Sequence[int], Callable[[Entry], bool]]]] = []
    streams += [[(gpus[:count], lambda entry, count=count: entry.num_gpus == count)] for count in counts]
    streams += [[((gpu,), lambda entry: entry.num_gpus == 1) for gpu in gpus], [((), lambda entry: not entry.num_gpus)]]
    for together in streams:
        threads = [threading.Thread(target=run.stream, args=stream) for stream in together]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                time.sleep(0.05)
        except KeyboardInterrupt:
            run.is_stopped = True
            raise
        finally:
            for thread in threads:
                thread.join()


def summary(entries: Sequence[Entry], state: State) -> list[str]:
    """A line a step, those of no step of the state too."""
    lines = []
    for entry in entries:
        for number, step in enumerate(entry.steps):
            facts = state.facts(entry, step)
            seconds = f"{facts['seconds']:7.1f} s" if "seconds" in facts else " " * 9
            lines.append(f"{facts['status']:18} {seconds}  {entry.file} {number + 1}/{len(entry.steps)}")
    return lines


def main(words: Sequence[str] | None = None) -> int:
    """0 when every chosen step is done, 1 when one is not, 2 for wrong words, 130 when interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=["*"], help="of results/, or patterns; left out: all")
    parser.add_argument("--plan", type=Path, default=HERE / "plan.toml")
    parser.add_argument("--out", type=Path, help="the folder of results, logs and the state")
    parser.add_argument("--gpus", type=int, nargs="*", default=[], help="numbers of the GPUs to use; left out: none")
    parser.add_argument("--deadline", type=float, default=1e9, help="seconds after which nothing runs")
    parser.add_argument(
        "--vllm-site", type=Path, help="the folder that holds vLLM; without it what needs it is left out"
    )
    parser.add_argument("--list", action="store_true", help="what would be made, and what was")
    parser.add_argument("--readme", action="store_true", help="write README's table of the plan")
    given = parser.parse_args(words)
    plan = read_plan(given.plan)
    if given.readme:
        README.write_text(with_table(README.read_text(), table(plan)))
        return 0
    single = [one for entry in plan for one in entry.one_by_one()]
    chosen = [e for e in single if e.steps and any(fnmatch.fnmatch(e.file, pattern) for pattern in given.files)]
    if not chosen:
        parser.error(f"The plan makes no {' '.join(given.files)}; --list shows what it makes.")
    if given.list:
        print("\n".join(summary(chosen, State((given.out or Path()) / "state.json"))))
        return 0
    if given.out is None:
        parser.error("say --out DIR")
    places = {"vllm": str(given.vllm_site)}
    possible = [e for e in chosen if e.num_gpus <= len(given.gpus) and ("vllm" not in e.needs or given.vllm_site)]
    for entry in chosen:
        if entry not in possible:
            lacking = "--vllm-site" if entry.num_gpus <= len(given.gpus) else f"{entry.num_gpus} --gpus"
            _say(f"{entry.file} is left out: it needs {lacking}")
    run = Run(possible, given.out.resolve(), given.deadline, places)
    code = 0
    try:
        make(run, given.gpus)
    except KeyboardInterrupt:
        code = 130
    print("\n".join(summary(possible, run.state)))
    is_done = all(run.state.is_done(entry, step) for entry in possible for step in entry.steps)
    return code or (0 if is_done and possible else 1)


if __name__ == "__main__":
    sys.exit(main())
