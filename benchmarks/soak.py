"""Tens of thousands of requests on the fake device: does anything grow, leak or slow down?

`python benchmarks/soak.py`: through AsyncEngine, and a share through HTTP; 10 % are aborted, 5 % are invalid.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openai
import psutil

from fastkernels.bench.environment import environment
from fastkernels.engine.client import AsyncEngine
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.output_processor import OutputKind
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import FastKernelsError
from fastkernels.server.local import LocalServer, running_server

CONFIG = EngineConfig("tiny-llama", device="fake", num_pages=1024, max_num_seqs=64)
ABORTED, INVALID = 0.10, 0.05
OUT = Path(__file__).parent / "results" / "cpu" / "soak.json"
SAMPLE_SECONDS = 1.0
AGE_BLOCKS, AGE_REQUESTS = 11, 400
WARM_UP_SHARE = 0.25
"""Allocators and caches fill at first: the slope is taken after this share of the time."""


@dataclass
class Watch:
    """Memory, descriptors and processor time of processes while work goes on.

    Throughput also falls when somebody else uses the machine; processor time a request does so only where work grows.
    """

    processes: dict[str, psutil.Process]
    samples: list[dict[str, float]] = field(default_factory=list)
    num_done: int = 0
    started: float = field(default_factory=time.perf_counter)

    def sample(self) -> None:
        row: dict[str, float] = {"seconds": time.perf_counter() - self.started, "done": self.num_done}
        for name, process in self.processes.items():
            row[f"{name}_rss_mb"] = process.memory_info().rss / 2**20
            row[f"{name}_fds"] = process.num_fds()
            used = process.cpu_times()
            row[f"{name}_cpu"] = used.user + used.system
        self.samples.append(row)

    async def run(self) -> None:
        while True:
            self.sample()
            await asyncio.sleep(SAMPLE_SECONDS)

    def summary(self) -> dict[str, Any]:
        times = np.array([row["seconds"] for row in self.samples])
        late = times >= WARM_UP_SHARE * times[-1]
        done = np.array([row["done"] for row in self.samples])
        half = len(times) // 2
        parts = ((half // 2, half), (half, -1))
        rates = [float((done[b] - done[a]) / (times[b] - times[a])) for a, b in parts]
        told: dict[str, Any] = {"seconds": float(times[-1]), "requests_per_second": float(done[-1] / times[-1])}
        told["throughput_drift"] = rates[1] / rates[0] - 1
        for name in self.processes:
            rss = np.array([row[f"{name}_rss_mb"] for row in self.samples])
            cpu = np.array([row[f"{name}_cpu"] for row in self.samples])
            costs = [float(1e6 * (cpu[b] - cpu[a]) / (done[b] - done[a])) for a, b in parts]
            told[name] = {
                "cpu_us_per_request": costs,
                "cpu_drift": costs[1] / costs[0] - 1,
                "rss_mb_first": float(rss[late][0]),
                "rss_mb_last": float(rss[-1]),
                "rss_slope_mb_per_minute": float(60 * np.polyfit(times[late], rss[late], 1)[0]),
                "fds_first": self.samples[int(late.argmax())][f"{name}_fds"],
                "fds_last": self.samples[-1][f"{name}_fds"],
            }
        return told


def draw(rng: random.Random, index: int) -> tuple[str, list[int], SamplingParams]:
    """What becomes of a request, its prompt and its parameters: lengths vary, a third share a prefix."""
    fate = rng.random()
    kind = "aborted" if fate < ABORTED else "invalid" if fate < ABORTED + INVALID else "finished"
    prefix = list(range(10, 42)) if index % 3 == 0 else []
    prompt = prefix + [rng.randrange(2, 512) for _ in range(rng.randint(1, 40))]
    stop = ("e", "zz") if index % 5 == 0 else ()
    params = SamplingParams(max_tokens=rng.randint(1, 40), seed=index, stop=stop, n=2 if index % 20 == 0 else 1)
    if kind == "invalid":
        prompt = [[], [512], [1] * 600][index % 3]
    return kind, prompt, params


async def through_engine(engine: AsyncEngine, index: int, rng: random.Random) -> str:
    wanted, prompt, params = draw(rng, index)
    kind = OutputKind.DELTA if index % 2 else OutputKind.FINAL_ONLY
    patience = rng.random() * 0.05 if wanted == "aborted" else None
    try:
        async with asyncio.timeout(patience):
            async with contextlib.aclosing(engine.generate(prompt, params, f"soak-{index}", kind)) as outputs:
                async for _ in outputs:
                    if wanted == "aborted" and index % 2:
                        return "aborted"
    except TimeoutError:
        return "aborted"
    except FastKernelsError:
        assert wanted == "invalid", "a valid request was refused"
        return "invalid"
    assert wanted != "invalid", "an invalid request was served"
    return wanted if wanted == "finished" else "finished before its abort"


async def through_http(client: openai.AsyncOpenAI, index: int, rng: random.Random) -> str:
    wanted, prompt, params = draw(rng, index)
    asked = {"model": CONFIG.model, "prompt": prompt, "max_tokens": params.max_tokens, "seed": index, "n": params.n}
    try:
        if wanted != "aborted" and index % 2:
            await client.completions.create(**asked, stop=list(params.stop) or None)  # type: ignore[call-overload]
        else:
            async with await client.completions.create(**asked, stream=True) as stream:  # type: ignore[call-overload]
                async for _ in stream:
                    if wanted == "aborted":
                        return "aborted"
    except openai.BadRequestError:
        assert wanted == "invalid", "a valid request was refused"
        return "invalid"
    assert wanted != "invalid", "an invalid request was served"
    return wanted if wanted == "finished" else "finished before its abort"


async def drive(count: int, concurrency: int, watch: Watch, one: Any) -> Counter[str]:
    """`count` requests, `concurrency` at a time."""
    outcomes: Counter[str] = Counter()
    numbers = iter(range(count))

    async def worker() -> None:
        for index in numbers:
            outcomes[await one(index, random.Random(index))] += 1
            watch.num_done += 1

    watching = asyncio.create_task(watch.run())
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    watching.cancel()
    watch.sample()
    return outcomes


async def soak_engine(count: int, concurrency: int) -> dict[str, Any]:
    engine = await AsyncEngine.start(CONFIG)
    gc.freeze()
    watch = Watch({"client": psutil.Process(), "engine": psutil.Process(engine.process.pid)})
    cpu = time.process_time()
    outcomes = await drive(count, concurrency, watch, lambda i, rng: through_engine(engine, i, rng))
    cpu = time.process_time() - cpu
    stats = await engine.stats()
    for _ in range(20):  # the last aborts
        stats = await engine.stats()
    told = watch.summary() | {
        "requests": count,
        "outcomes": dict(outcomes),
        "tokens": stats.num_generated_tokens,
        "client_cpu_us_per_token": 1e6 * cpu / stats.num_generated_tokens,
        "pages_missing": CONFIG.num_pages - stats.num_free_pages if CONFIG.num_pages else None,
        "rows_left": stats.num_running + stats.num_waiting,
        "requests_left_in_client": engine.num_unfinished + engine.num_waiting + len(engine.processor),
        "preemptions": stats.num_preemptions,
        "prefix_hit_tokens": stats.num_cached_tokens,
    }
    await engine.close()
    return told


async def soak_http(server: LocalServer, count: int, concurrency: int) -> dict[str, Any]:
    process = psutil.Process(server.process.pid)
    watch = Watch({"server": process, "engine": process.children()[0], "client": psutil.Process()})
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        outcomes = await drive(count, concurrency, watch, lambda i, rng: through_http(client, i, rng))
        await asyncio.sleep(1)
        gauges = {}
        text = await client.with_options(base_url=server.url).get("/metrics", cast_to=str)
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            if not line.startswith("#"):
                gauges[name] = float(value)
    return watch.summary() | {
        "requests": count,
        "outcomes": dict(outcomes),
        "tokens": gauges["fastkernels_generation_tokens_total"],
        "pages_missing": gauges["fastkernels_num_pages"] - gauges["fastkernels_num_free_pages"],
        "rows_left": gauges["fastkernels_num_requests_running"] + gauges["fastkernels_num_requests_waiting"],
        "failed_lines": server.log.count('"outcome": "failed"'),
    }


async def aged_beside_fresh(aged: LocalServer, fresh: LocalServer, concurrency: int) -> dict[str, Any]:
    """Processor time a request of a server that has served a soak over that of a new one, blocks of both in turn."""
    used: dict[str, list[float]] = {"aged": [], "fresh": []}
    servers = {"fresh": fresh, "aged": aged}
    for number in range(2 * AGE_BLOCKS + 2):
        name = "fresh" if number < 2 or number % 2 else "aged"  # two blocks warm the new one up
        server = servers[name]
        processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children()]
        before = sum(sum(p.cpu_times()[:2]) for p in processes)
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            await drive(AGE_REQUESTS, concurrency, Watch({}), lambda i, rng, c=client: through_http(c, i, rng))
        seconds = sum(sum(p.cpu_times()[:2]) for p in processes) - before
        if number >= 2:
            used[name].append(1e6 * seconds / AGE_REQUESTS)
    ratios = [a / f for a, f in zip(used["aged"], used["fresh"], strict=True)]
    return {**{f"{name}_cpu_us_per_request": values for name, values in used.items()}, "ratio": median(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=300_000)
    parser.add_argument("--http-share", type=float, default=0.1)
    parser.add_argument("--concurrency", type=int, default=128)
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    num_http = int(chosen.requests * chosen.http_share)
    told: dict[str, Any] = {"environment": environment("cpu"), "aborted": ABORTED, "invalid": INVALID}
    told["engine"] = asyncio.run(soak_engine(chosen.requests - num_http, chosen.concurrency))
    options = ("--device", "fake", "--num-pages", str(CONFIG.num_pages), "--max-num-seqs", str(CONFIG.max_num_seqs))
    with running_server(CONFIG.model, *options) as server:
        concurrency = min(32, chosen.concurrency)
        told["http"] = asyncio.run(soak_http(server, num_http, concurrency))
        with running_server(CONFIG.model, *options) as fresh:
            told["http"]["aged_beside_fresh"] = asyncio.run(aged_beside_fresh(server, fresh, concurrency))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps({name: told[name] for name in ("engine", "http")}, indent=1))


if __name__ == "__main__":
    main()
