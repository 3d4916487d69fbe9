"""What tests of end-to-end runs share: sides as if measured, under load and offline, in a run's folder."""

from __future__ import annotations

import random
from pathlib import Path

from report_runs import ENVIRONMENT, HOSTILE

from fastkernels.bench.e2e.load import RequestRecord
from fastkernels.bench.e2e.offline import Side
from fastkernels.bench.e2e.run import comparisons, side_json
from fastkernels.bench.e2e.scenario import Scenario
from fastkernels.bench.e2e.serving import LoadPlan, _repeat
from fastkernels.bench.run_folder import RunFolder

REQUEST = {"model": "tiny-llama", "workload": "azure_conv", "candidates": [HOSTILE], "goodput": ["ttft:500"]}


def load_records(generator: random.Random) -> list[RequestRecord]:
    records, start = [], 0.0
    for index in range(200):
        start += generator.expovariate(20.0)
        gaps = [generator.lognormvariate(-4.5, 0.4) for _ in range(generator.randint(0, 60))]
        ttft = generator.lognormvariate(-3.0, 0.5)
        tokens = [generator.randrange(500) for _ in range(len(gaps) + 1)]
        records.append(
            RequestRecord(index, 900, len(tokens), start, ttft, ttft + sum(gaps), gaps, len(tokens), 16, "", tokens)
        )
    records.append(RequestRecord(200, 900, 4, start, error=HOSTILE))
    return records


def load_side(name: str, seed: int) -> Side:
    side = Side(name, (HOSTILE,) if name != "baseline" else (), 21.5, {"url": "http://127.0.0.1:1", "model": HOSTILE})
    counters = {"num_steps": 900.0, "num_graph_steps": 850.0, "num_prompt_tokens": 9e4, "num_cached_tokens": 4e4}
    after = {**counters, "num_preemptions": 3.0, "peak_memory_bytes": 9e10}
    side.repeats.append(_repeat(side, 0, load_records(random.Random(seed)), {}, after, 0.93, makes_tokens=True))
    side.is_complete = True
    if name != "baseline":
        line = {"op": "rms_norm", "set": HOSTILE, "num_calls": 10, "error": None}
        side.replacements = [{**line, "status": s, "rank": r} for r, s in enumerate(("REPLACED", "NEVER_CALLED"))]
    return side


def failed_side(name: str, makes_tokens: bool) -> Side:
    side = Side(name, (), 21.5, {"url": "http://127.0.0.1:1", "model": HOSTILE})
    records = [RequestRecord(i, 9, 4, 0.1 * i, error=HOSTILE) for i in range(8)]
    side.repeats.append(_repeat(side, 0, records, {}, {}, None, makes_tokens))
    side.is_complete = True
    return side


def offline_side(name: str, speed: float) -> Side:
    side = Side(name, (), 4.0, {"model": "tiny-llama", "cache_bytes": 1 << 30, "startup_seconds": 3.25})
    for number in range(3):
        times = [(0.02 * i / speed, 64 * i) for i in range(1, 101)]
        requests = [{"prompt_len": 512, "output_len": 128, "num_cached_tokens": 0, "num_preemptions": 0}] * 50
        side.tokens[number] = [[1, 2, 3 + (number if speed > 1 else 0)]]
        side.repeats.append(
            {
                "repeat": number, "seconds": (2.0 + 0.05 * number) / speed, "digest": "0123456789abcdef" * 4,
                "token_times": times, "counters": {"num_steps": 128}, "peak_memory_bytes": 0, "gpu_busy_share": None,
                "requests": requests,
            }
        )  # fmt: skip
    return side


def pipeline_side(name: str, speed: float) -> Side:
    side = Side(name, (), 9.0, {"model": "tiny-sdxl", "kind": "iterative", "weight_bytes": 3 << 20})
    generator = random.Random(name)
    for number in range(3):
        seconds = (2.0 + 0.05 * number) / speed
        requests = [
            {
                "index": i, "num_steps": 4, "prepare_s": generator.lognormvariate(-6.0, 0.4),
                "start_s": seconds * (i // 8) / 6, "e2e_s": seconds / 6 + 0.001 * i, "digest": "0123456789abcdef" * 4,
                "alone_s": generator.lognormvariate(-3.0, 0.3) if i < 32 else None,
            }
            for i in range(48)
        ]  # fmt: skip
        side.repeats.append(
            {
                "repeat": number, "seconds": seconds, "digest": "0123456789abcdef" * 4,
                "work_times": [(seconds * (i + 1) / 24, 8 * (i + 1)) for i in range(24)],
                "counters": {"num_steps": 24, "num_graph_steps": 20}, "peak_memory_bytes": 3 << 30,
                "gpu_busy_share": 0.91, "requests": requests,
            }
        )  # fmt: skip
    if name != "baseline":
        error = {"num_pairs": 144, "num_equal": 0, "num_unlike": 1, "largest_relative_error": 3.4e-6}
        side.outputs = [
            {"name": HOSTILE, **error, "least_cosine": 0.99999},
            {"name": "seed", **error, "num_equal": 144, "largest_relative_error": None, "least_cosine": None},
        ]
    return side


def write_run(path: Path, sides: list[Side] | None, plan: LoadPlan | None, model: str = "tiny-llama") -> Path:
    given = {"model": model, "workload": "examples", "candidates": [HOSTILE]}
    folder = RunFolder.create("e2e", REQUEST if model == REQUEST["model"] else given, ENVIRONMENT, path)
    if sides is not None:
        scenario = Scenario(model, "azure_conv" if model == "tiny-llama" else "examples", num_requests=40)
        folder.finish(
            status="finished", seconds=95.0, e2e_schema_version=1, mode="serving" if plan else "offline",
            workload=scenario.describe(scenario.requests() if scenario.makes_tokens else ()),
            sides=[side_json(s, plan) for s in sides],
            comparisons=comparisons(sides),
        )  # fmt: skip
    return path
