"""Where the engine's time goes: passes over a workload step by step, and the kernels of some of their steps.

    python benchmarks/engine_profile.py --workload azure_conv --passes 3 --out "$OUT/engine_profile.json"
    python benchmarks/engine_profile.py --workload batch32 --options '{"tensor_parallel_size": 2}' --out tp2.json

Every pass takes the same steps (greedy, ignore_eos, no prefix cache), so a step of one is held against the same step of
another. In one more pass the longest row of mixed steps and that of decode steps are run under torch's profiler, as
many as --profiled: what each kernel took of a step, and how long the device did nothing. Of several ranks it sees rank
0. The profiler slows the host: the times are those of the passes before.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fastkernels import LLM, SamplingParams
from fastkernels.bench.environment import environment
from fastkernels.engine.batch import StepInputs
from fastkernels.kernels.compilations import num_kernels_made
from fastkernels.workloads import capped, find_traffic


@dataclass(frozen=True)
class StepRecord:
    """at: seconds since the pass began, when it was launched."""

    at: float
    num_tokens: int
    num_seqs: int
    is_graph: bool
    num_kernels_made: int
    num_device_allocs: int

    @property
    def kind(self) -> str:
        return "decode" if self.num_tokens == self.num_seqs else "mixed"


class RecordingRunner:
    """A runner that notes every step; a window of steps is run under the profiler."""

    def __init__(self, runner: Any, device: str) -> None:
        self._runner, self._is_cuda = runner, device.startswith("cuda")
        self.steps: list[StepRecord] = []
        self.windows: dict[str, tuple[int, int]] = {}
        self.profiles: dict[str, dict[str, Any]] = {}
        self._profile: Any = None
        self._began = self._entered = 0.0

    def begin(self) -> None:
        self.steps, self._began = [], time.perf_counter()

    def launch(self, inputs: StepInputs) -> Any:
        now, number = time.perf_counter(), len(self.steps)
        for kind, (first, end) in self.windows.items():
            if number == first:
                self._enter()
            elif number == end:
                self._leave(kind, end - first)
        graphs = self._runner.num_graph_steps
        step = self._runner.launch(inputs)
        self.steps.append(
            StepRecord(
                now - self._began,
                int(inputs.counts.sum()),
                len(inputs.counts),
                self._runner.num_graph_steps > graphs,
                num_kernels_made(),
                torch.cuda.memory_stats()["num_device_alloc"] if self._is_cuda else 0,
            )
        )
        return step

    def _enter(self) -> None:
        self._synchronise()
        self._profile = profile(activities=[ProfilerActivity.CUDA if self._is_cuda else ProfilerActivity.CPU])
        self._profile.__enter__()
        self._entered = time.perf_counter()

    def _leave(self, kind: str, num_steps: int) -> None:
        self._synchronise()
        seconds = time.perf_counter() - self._entered
        self._profile.__exit__(None, None, None)
        self.profiles[kind] = summarised(self._profile, num_steps, seconds)

    def _synchronise(self) -> None:
        if self._is_cuda:
            torch.cuda.synchronize()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


def summarised(profiled: Any, num_steps: int, seconds: float) -> dict[str, Any]:
    """Microseconds a step by kernel, most first; busy: the union of all kernels' times, of the window."""
    events = [e for e in profiled.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in events:
        total = totals[event.name]
        total[0] += event.time_range.elapsed_us()
        total[1] += 1
    busy, reached = 0.0, float("-inf")
    for start, end in sorted((e.time_range.start, e.time_range.end) for e in events):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    ranked = sorted(totals.items(), key=lambda item: -item[1][0])
    return {
        "num_steps": num_steps,
        "us_a_step": seconds * 1e6 / num_steps,
        "busy_us_a_step": busy / num_steps,
        "kernels": [
            {"name": name[:160], "us_a_step": us / num_steps, "calls_a_step": calls / num_steps}
            for name, (us, calls) in ranked[:40]
        ],
    }


def longest_row(steps: list[StepRecord], kind: str, most: int) -> tuple[int, int] | None:
    """First and end of `most` steps in the middle of the longest row of steps of a kind."""
    rows, number = [], 0
    for found, group in itertools.groupby(steps, key=lambda step: step.kind):
        length = len(list(group))
        if found == kind:
            rows.append((length, number))
        number += length
    if not rows:
        return None
    length, first = max(rows)
    most = min(most, length)
    first += (length - most) // 2
    return (first, first + most) if first + most < len(steps) else (first - 1, first + most - 1)


def slower_steps(passes: list[list[StepRecord]]) -> list[dict[str, Any]]:
    """The steps that took longest in the first pass over what the same step took in the last, up to 30."""
    first, last = passes[0], passes[-1]
    durations = [[b.at - a.at for a, b in itertools.pairwise(steps)] for steps in (first, last)]
    found = [
        {"step": i, "over_s": one - other, "first_s": one, "last_s": other, **asdict(first[i])}
        for i, (one, other) in enumerate(zip(*durations, strict=True))
    ]
    return sorted(found, key=lambda step: -step["over_s"])[:30]


def by_kind(steps: list[StepRecord], seconds: float) -> dict[str, Any]:
    """Steps, tokens, sequences and seconds of each kind; a step lasts until the next is launched."""
    ends = [*(step.at for step in steps[1:]), seconds]
    kinds: dict[str, Any] = {}
    for step, end in zip(steps, ends, strict=True):
        kind = kinds.setdefault(step.kind, {"num_steps": 0, "num_tokens": 0, "num_seqs": 0, "seconds": 0.0})
        kind["num_steps"] += 1
        kind["num_tokens"] += step.num_tokens
        kind["num_seqs"] += step.num_seqs
        kind["seconds"] += end - step.at
    return kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="llama-3.1-8b")
    add("--workload", default="azure_conv")
    add("--passes", type=int, default=3)
    add("--profiled", type=int, default=20, help="steps of each kind")
    add("--num-requests", type=int)
    add("--scale", type=float, default=1.0)
    add("--options", default="{}", help="more EngineConfig fields as JSON")
    add("--out", type=Path, required=True)
    given = parser.parse_args()
    options = {"max_model_len": 8192, "max_num_seqs": 1024, "max_num_batched_tokens": 8192, "page_size": 16}
    options |= {"num_pages": 335_872 // 16, "enable_prefix_caching": False, "warm": "full", **json.loads(given.options)}
    started = time.perf_counter()
    llm = LLM(given.model, **options)
    record: dict[str, Any] = {
        "schema_version": 1,
        "settings": {key: str(value) for key, value in vars(given).items() if key != "out"} | {"engine": options},
        "environment": environment(llm.core.info.device),
        "startup_seconds": time.perf_counter() - started,
        "num_kernels_made_at_startup": num_kernels_made(),
        "passes": [],
        "profiles": {},
    }
    traffic = find_traffic(given.workload).scaled(given.scale)
    if given.num_requests is not None:
        traffic = traffic.limited(given.num_requests)
    requests, _ = capped(traffic.requests(llm.core.info.vocab_size), options["max_model_len"])
    prompts = [list(r.prompt_token_ids) for r in requests]
    params = [SamplingParams(temperature=0, max_tokens=r.output_len, ignore_eos=True) for r in requests]
    runner = RecordingRunner(llm.core.runner, llm.core.info.device)
    llm.core.runner = runner  # type: ignore[assignment]
    passes: list[list[StepRecord]] = []

    def run_pass() -> float:
        runner.begin()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - runner._began

    def save() -> None:
        given.out.write_text(json.dumps(record, indent=1) + "\n")

    for number in range(given.passes):
        seconds = run_pass()
        passes.append(runner.steps)
        kinds = by_kind(runner.steps, seconds)
        facts = {name: getattr(runner.steps[-1], name) for name in ("num_kernels_made", "num_device_allocs")}
        record["passes"].append({"seconds": seconds, "kinds": kinds, **facts})
        print(f"pass {number}: {seconds:.2f} s", kinds, facts, flush=True)
        save()
    record["slower_in_the_first_pass"] = slower_steps(passes)
    save()
    windows = {kind: longest_row(passes[-1], kind, given.profiled) for kind in ("mixed", "decode")}
    for kind, window in windows.items():  # a pass each: they must not overlap, and tracing has its own cost
        if window is None:
            continue
        runner.windows = {kind: window}
        run_pass()
        steps = passes[-1][window[0] : window[1]]
        facts = {"first": window[0], "num_tokens": sum(s.num_tokens for s in steps) / len(steps)}
        facts |= {"num_seqs": sum(s.num_seqs for s in steps) / len(steps)}
        facts["unprofiled_us_a_step"] = 1e6 * (passes[-1][window[1]].at - steps[0].at) / len(steps)
        record["profiles"][kind] = {**facts, **runner.profiles[kind]}
        save()
        show(kind, record["profiles"][kind])
    for step in record["slower_in_the_first_pass"][:12]:
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in step.items()})
    llm.close()


def show(kind: str, facts: dict[str, Any]) -> None:
    print(f"{kind}:", {key: round(value, 1) for key, value in facts.items() if key != "kernels"})
    for kernel in facts["kernels"][:18]:
        print(f"  {kernel['us_a_step']:10.1f} us {kernel['calls_a_step']:7.1f} calls  {kernel['name'][:100]}")


if __name__ == "__main__":
    main()
