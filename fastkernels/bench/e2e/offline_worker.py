"""One model's offline repeats, in a process of its own: replacements must be in place before the model is imported.

    python -m fastkernels.bench.e2e.offline_worker ORDER.json

Tells its events as JSON lines on stdout: ready, progress, repeat, end, error. A model that makes no tokens has its
worker in pipelines.py.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkernels.bench.e2e.scenario import Scenario
from fastkernels.bench.e2e.tokens import digest
from fastkernels.errors import EXIT_NOT_PASSED, FastKernelsError
from fastkernels.optional import missing_package
from fastkernels.workloads import TrafficRequest

if TYPE_CHECKING:
    from fastkernels.bench.e2e.pipelines import PipelineWorker

_TOLD_SECONDS = 0.1
_MOST_POINTS = 2000
_COUNTERS = ("num_steps", "num_graph_steps", "num_prompt_tokens", "num_cached_tokens", "num_preemptions")
_MORE_COUNTERS = ("num_generated_tokens", "num_compilations", "num_kernels_made")


class Worker:
    def __init__(self, order: dict[str, Any], tell: Callable[..., None]) -> None:
        from fastkernels.engine.llm import LLM

        self.tell = tell
        self.scenario = Scenario(**order["scenario"])
        self.order = order
        self.llm = LLM(
            self.scenario.model, candidates=order["candidates"], seed=self.scenario.seed, **self.scenario.options
        )
        info = self.llm.core.info
        seconds = time.time() - order["spawned"]
        self.tell(
            "ready", startup_seconds=seconds, engine={**asdict(info), "eos_token_ids": sorted(info.eos_token_ids)}
        )

    def run(self) -> None:
        share = self.order["warmup_share"]
        if share:
            self.generate(self.scenario.warmup_requests(share, self.llm.core.info.device), -1)
        for repeat in range(self.order["num_repeats"]):
            self.tell("repeat", **self.generate(self.scenario.requests(repeat), repeat))
        self.tell("end", replacements=self.llm.replacements())
        self.llm.close()

    def generate(self, requests: Sequence[TrafficRequest], repeat: int) -> dict[str, Any]:
        from fastkernels.engine.sampling_params import SamplingParams

        prompts = self.scenario.prompts(requests, repeat)
        params = [SamplingParams(temperature=0, max_tokens=r.output_len, ignore_eos=True) for r in requests]
        before = self.counters()
        made = _Made(self, repeat)
        outputs = self.llm.generate(prompts, params, progress=made)
        seconds = time.perf_counter() - made.started
        answers = [output.outputs[0].token_ids for output in outputs]
        after = self.counters()
        ended = time.monotonic()
        if repeat >= 0 and self.order["tokens"]:
            path = Path(self.order["tokens"]) / f"{repeat}.json"
            path.write_text(json.dumps(answers))
        return {
            "repeat": repeat,
            "seconds": seconds,
            "ended": ended,
            "digest": digest(answers),
            "token_times": made.thinned(),
            "counters": {name: value - before[name] for name, value in after.items()},
            "peak_memory_bytes": self.llm.core.stats().peak_memory_bytes,
            "requests": [
                {
                    "prompt_len": len(output.prompt_token_ids),
                    "output_len": len(output.outputs[0].token_ids),
                    "num_cached_tokens": output.num_cached_tokens,
                    "num_preemptions": output.num_preemptions,
                }
                for output in outputs
            ],
        }

    def counters(self) -> dict[str, int]:
        stats = self.llm.core.stats()
        return {name: getattr(stats, name) for name in (*_COUNTERS, *_MORE_COUNTERS)}


class _Made:
    """The progress callback: when how many tokens were there; tells now and then."""

    def __init__(self, worker: Worker, repeat: int) -> None:
        self.worker, self.repeat = worker, repeat
        self.points: list[tuple[float, int]] = []
        self.started = self._told = time.perf_counter()

    def __call__(self, done: int, most: int) -> None:
        now = time.perf_counter()
        if not self.points or done > self.points[-1][1]:
            self.points.append((now - self.started, done))
        if now - self._told > _TOLD_SECONDS:
            self._told = now
            self.worker.tell("progress", repeat=self.repeat, done=done, total=most)

    def thinned(self) -> list[tuple[float, int]]:
        """[seconds, tokens made by then], evenly many of the steps, the last one among them."""
        step = -(-len(self.points) // _MOST_POINTS) or 1
        kept = self.points[::-step][::-1]
        return [(round(seconds, 6), tokens) for seconds, tokens in kept]


def _worker(order: dict[str, Any], tell: Callable[..., None]) -> Worker | PipelineWorker:
    if Scenario(**order["scenario"]).makes_tokens:
        return Worker(order, tell)
    from fastkernels.bench.e2e.pipelines import PipelineWorker

    return PipelineWorker(order, tell)


def main(path: str) -> None:
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def tell(event: str, **values: Any) -> None:
        told.write(json.dumps({"event": event, **values}) + "\n")

    try:
        _worker(json.loads(Path(path).read_text()), tell).run()
    except FastKernelsError as error:
        tell("error", exit_code=error.exit_code, message=str(error))
        raise SystemExit(EXIT_NOT_PASSED) from None
    except ModuleNotFoundError as error:
        missing = missing_package(error)
        if missing is None:
            raise
        tell("error", exit_code=missing.exit_code, message=str(missing))
        raise SystemExit(EXIT_NOT_PASSED) from None


if __name__ == "__main__":
    main(sys.argv[1])
