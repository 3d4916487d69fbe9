"""One pipeline's offline repeats: the counterpart of offline_worker's Worker for models that make no tokens."""

from __future__ import annotations

import resource
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastkernels.bench.e2e.outputs import KeptOutputs, digest_of, result_digest
from fastkernels.bench.e2e.scenario import WARMUP_SEED, Scenario
from fastkernels.engine.pipeline import Pipeline
from fastkernels.engine.task_output import TaskOutput, TaskRequest

Requests = Sequence[Mapping[str, Any]]
_TOLD_SECONDS = 0.1
_MOST_POINTS = 2000
_MOST_ALONE = 32
_MOST_ALONE_SECONDS = 20.0


@dataclass
class PipelineRecord:
    """One request. Seconds; prepare_s: until its tensors are there; start_s: of its first step, from the pass's start.

    e2e_s: from its first step's start to its result, in a batch with others. alone_s: preparation, steps and result
    with nothing else under way; None for those that were not run so.
    """

    index: int
    num_steps: int = 0
    prepare_s: float = 0.0
    start_s: float | None = None
    e2e_s: float | None = None
    alone_s: float | None = None
    digest: str = ""


@dataclass
class _Pass:
    """All requests together, as many as may wait; with times. work_times: [seconds, request steps by then]."""

    records: list[PipelineRecord]
    progress: Callable[[int, int], None]
    results: dict[int, Any] = field(default_factory=dict)
    work_times: list[tuple[float, int]] = field(default_factory=list)
    seconds: float = 0.0

    def run(self, pipeline: Pipeline, requests: Requests) -> None:
        core, waiting = pipeline.core, deque(enumerate(requests))
        started = told = time.perf_counter()
        while waiting or core.has_unfinished:
            while waiting and core.num_unfinished < core.max_num_waiting:
                index, request = waiting.popleft()
                before = time.perf_counter()
                core.add(TaskRequest(str(index), request))
                self.records[index].prepare_s = time.perf_counter() - before
            began = time.perf_counter()
            news = core.step()
            self.seconds = time.perf_counter() - started
            self._take(news, began - started)
            if time.perf_counter() - told > _TOLD_SECONDS:
                told = time.perf_counter()
                self.progress(len(self.results), len(self.records))

    def _take(self, news: Sequence[TaskOutput], began: float) -> None:
        done = self.work_times[-1][1] if self.work_times else 0
        self.work_times.append((round(self.seconds, 6), done + len(news)))
        for output in news:
            record = self.records[int(output.request_id)]
            record.num_steps = output.num_steps
            record.start_s = began if record.start_s is None else record.start_s
            if output.finish_reason is not None:
                record.e2e_s = self.seconds - record.start_s
                self.results[record.index] = output.result


class PipelineWorker:
    """order: as offline_worker's; tell: says an event to the parent."""

    def __init__(self, order: dict[str, Any], tell: Callable[..., None]) -> None:
        self.order, self.tell = order, tell
        self.scenario = Scenario(**order["scenario"])
        self.kept = KeptOutputs(Path(order["outputs"])) if order["outputs"] else None
        options = dict(self.scenario.options)
        options.pop("tensor_parallel_size", None)
        if "max_num_seqs" in options:
            options["max_batch"] = options.pop("max_num_seqs")
        began = time.perf_counter()
        self.pipeline = Pipeline(
            self.scenario.model, candidates=order["candidates"], seed=self.scenario.seed, **options
        )
        ended = time.perf_counter()
        tell("ready", startup_seconds=time.time() - order["spawned"], engine=self._engine(ended - began))

    def _engine(self, seconds: float) -> dict[str, Any]:
        pipeline = self.pipeline
        weights = list(pipeline.model.parameters())
        return {
            "model": pipeline.name,
            "kind": pipeline.architecture.kind.value,
            "dtype": str(pipeline.dtype).removeprefix("torch."),
            "device": str(pipeline.device),
            "max_num_seqs": pipeline.core.max_batch,
            "startup_seconds": seconds,
            "weight_bytes": sum(p.numel() * p.element_size() for p in weights),
        }

    def run(self) -> None:
        """A warm-up pass is of as many requests as the others: graphs are of a batch's size, and captured when that
        comes again."""
        if self.order["warmup_share"]:
            for _ in range(2 if self.pipeline.device.type == "cuda" else 1):
                self._measure(-1)
        for repeat in range(self.order["num_repeats"]):
            self.tell("repeat", **self._measure(repeat))
        overlay = self.pipeline.overlay
        self.tell("end", replacements=overlay.report() if overlay is not None else [])
        self.pipeline.close()

    def _measure(self, repeat: int) -> dict[str, Any]:
        seed = self.scenario.seed + (repeat if repeat >= 0 else WARMUP_SEED)
        requests = self.pipeline.example_requests(self.scenario.size, seed)
        records = [PipelineRecord(index) for index in range(len(requests))]
        before = self._counters()
        one = _Pass(records, lambda done, total: self.tell("progress", repeat=repeat, done=done, total=total))
        one.run(self.pipeline, requests)
        ended, after = time.monotonic(), self._counters()
        peak = self._peak_memory_bytes()
        self._alone(requests, records)
        self._digest(repeat, records, one.results)
        return {
            "repeat": repeat,
            "seconds": one.seconds,
            "ended": ended,
            "digest": digest_of(record.digest for record in records),
            "work_times": one.work_times[:: -(len(one.work_times) // _MOST_POINTS + 1)][::-1],
            "counters": {name: value - before[name] for name, value in after.items()},
            "peak_memory_bytes": peak,
            "requests": [asdict(record) for record in records],
        }

    def _alone(self, requests: Requests, records: Sequence[PipelineRecord]) -> None:
        """The first ones again, each with nothing else under way, for a while."""
        end = time.perf_counter() + _MOST_ALONE_SECONDS
        for request, record in list(zip(requests, records, strict=True))[:_MOST_ALONE]:
            began = time.perf_counter()
            self.pipeline.run([request])
            record.alone_s = time.perf_counter() - began
            if time.perf_counter() > end:
                return

    def _digest(self, repeat: int, records: Sequence[PipelineRecord], results: Mapping[int, Any]) -> None:
        for record in records:
            tensors = results[record.index].tensors
            record.digest = result_digest(tensors)
            if self.kept is not None and repeat >= 0:
                self.kept.keep(repeat, record.index, tensors)

    def _counters(self) -> dict[str, int]:
        core = self.pipeline.core
        return {"num_steps": core.num_steps, "num_graph_steps": getattr(core.runner, "num_graph_steps", 0)}

    def _peak_memory_bytes(self) -> int:
        """The device's; on a CPU the process's."""
        if self.pipeline.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.pipeline.device)
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
