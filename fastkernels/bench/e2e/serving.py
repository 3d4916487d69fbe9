"""A server under load: our own, started here, or any that speaks OpenAI's API."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastkernels.bench.e2e.busy import BusySampler
from fastkernels.bench.e2e.http import Endpoint, HttpError, get, get_json
from fastkernels.bench.e2e.load import Arrivals, Load, RequestRecord
from fastkernels.bench.e2e.metrics import answer_times, load_token_times
from fastkernels.bench.e2e.offline import Json, Side, SideError, Watcher
from fastkernels.bench.e2e.routes import examples_of, route_of
from fastkernels.bench.e2e.scenario import WARMUP_SEED, Scenario
from fastkernels.bench.e2e.tokens import digest
from fastkernels.errors import EnvironmentProblem
from fastkernels.server.local import running_server

_MOST_POINTS = 2000
_NUM_WARMUPS = 16
_WAITING_SLACK = 4096
_COUNTERS = {
    "num_steps": ("fastkernels_steps_total",),
    "num_preemptions": ("fastkernels_preemptions_total", "vllm:num_preemptions_total"),
    "num_prompt_tokens": ("fastkernels_prompt_tokens_total", "vllm:prefix_cache_queries_total"),
    "num_cached_tokens": ("fastkernels_prefix_cache_hit_tokens_total", "vllm:prefix_cache_hits_total"),
    "num_compilations": ("fastkernels_compilations_total",),
    "num_kernels_made": ("fastkernels_kernels_made_total",),
}
"""Ours, and vLLM's of the same meaning."""


@dataclass(frozen=True)
class LoadPlan:
    """endpoint None: our server is started. model: its name there; the first it lists when None."""

    endpoint: Endpoint | None = None
    model: str | None = None
    arrivals: Arrivals = field(default_factory=Arrivals)
    max_concurrency: int | None = None
    goodput_ms: Mapping[str, float] = field(default_factory=dict)
    ready_seconds: float = 900.0


def run_serving(
    scenario: Scenario, side: Side, plan: LoadPlan, num_repeats: int, watcher: Watcher, keeps: Callable[[], None]
) -> None:
    """Fill `side`, a repeat at a time; `keeps` is called after each, also after one that was cut short.

    Errors: SideError when the server cannot start; EnvironmentProblem when none answers.
    """
    route = route_of(scenario.architecture)
    assert route is not None
    with contextlib.ExitStack() as stack:
        endpoint = plan.endpoint
        if endpoint is None:
            watcher.stage(f"{side.name}: starting the server")
            started = time.monotonic()
            endpoint = Endpoint(stack.enter_context(_own_server(scenario, side, plan)))
            side.startup_seconds = time.monotonic() - started
        model, max_len = _served_model(endpoint, plan.model)
        side.engine |= {"url": endpoint.url, "model": model, "max_model_len": max_len, **_version(endpoint)}
        busy = stack.enter_context(BusySampler(scenario.gpus if endpoint.is_local else []))
        watcher.stage(f"{side.name}: warm-up")
        warmup = _requests(scenario, -1, max_len, _NUM_WARMUPS)
        asyncio.run(Load(endpoint, model, route).run(warmup, [0.0] * len(warmup)))
        for repeat in range(num_repeats):
            watcher.stage(f"{side.name}: repeat {repeat + 1} of {num_repeats}")
            requests = _requests(scenario, repeat, max_len)
            load = Load(endpoint, model, route, plan.max_concurrency, watcher.progress)
            before, since = _counters(endpoint), time.monotonic()
            try:
                asyncio.run(load.run(requests, plan.arrivals.times(requests)))
            finally:
                if load.records:
                    share = busy.share(since, time.monotonic())
                    after = _counters(endpoint)
                    kept = _repeat(side, repeat, load.records, before, after, share, scenario.makes_tokens)
                    kept["is_whole"] = len(load.records) == len(requests)
                    side.repeats.append(kept)
                    keeps()
        side.replacements = _replacements(endpoint)
        side.is_complete = True


def _requests(scenario: Scenario, repeat: int, max_len: int | None, most: int | None = None) -> Sequence[Any]:
    """Of a repeat; -1: for the warm-up. most: no more than so many."""
    if scenario.makes_tokens:
        return scenario.load(repeat, max_len, most)
    seed = scenario.seed + (repeat if repeat >= 0 else WARMUP_SEED)
    return examples_of(scenario.architecture, scenario.size, seed)[:most]


@contextlib.contextmanager
def _own_server(scenario: Scenario, side: Side, plan: LoadPlan) -> Iterator[str]:
    """Errors: SideError with the server's own words when it does not start."""
    words = serve_words(scenario, side.candidates)
    try:
        server = running_server(scenario.model, *words, ready_timeout=plan.ready_seconds)
        url = server.__enter__()
    except EnvironmentProblem as error:
        raise SideError(f"{side.name}: {error}", error.exit_code) from error
    try:
        yield url.url
    finally:
        server.__exit__(None, None, None)


def serve_words(scenario: Scenario, candidates: Sequence[str]) -> list[str]:
    """Options of `fastkernels serve` for the scenario's engine; nothing is refused for waiting."""
    options = {"warm": "full", "max_num_waiting": scenario.size + _WAITING_SLACK, **scenario.options}
    words = ["--seed", str(scenario.seed)]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return words + [word for name in candidates for word in ("--candidates", name)]


def _served_model(endpoint: Endpoint, asked: str | None) -> tuple[str, int | None]:
    """Its name there, and the most tokens of a request where the server tells. Errors: EnvironmentProblem."""
    try:
        models = {m["id"]: m for m in asyncio.run(get_json(endpoint, "/v1/models"))["data"]}
    except (HttpError, ValueError, KeyError, TypeError) as error:
        raise EnvironmentProblem(f"{endpoint.url}/v1/models does not list models: {error}") from error
    if not models or (asked is not None and asked not in models):
        raise EnvironmentProblem(f"{endpoint.url} serves {', '.join(models) or 'no model'}, not {asked or 'any'}.")
    name = asked or next(iter(models))
    return name, models[name].get("max_model_len")


def _version(endpoint: Endpoint) -> Json:
    with contextlib.suppress(HttpError, ValueError, EnvironmentProblem, AttributeError):
        return {"version": asyncio.run(get_json(endpoint, "/version")).get("version")}
    return {}


def _replacements(endpoint: Endpoint) -> list[Json]:
    """Of a server of ours; no other has the route."""
    with contextlib.suppress(HttpError, ValueError, KeyError, EnvironmentProblem):
        lines: list[Json] = asyncio.run(get_json(endpoint, "/v1/kernels"))["data"]
        return [line for line in lines if line["status"] != "BASELINE"]
    return []


def _counters(endpoint: Endpoint) -> dict[str, float]:
    """From /metrics, as far as the server has them."""
    try:
        text = asyncio.run(get(endpoint, "/metrics")).decode()
    except (HttpError, EnvironmentProblem, ValueError):
        return {}
    return read_counters(text)


def read_counters(text: str) -> dict[str, float]:
    """By our names, labels summed, from Prometheus's text."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            name = series.partition("{")[0]
            values[name] = values.get(name, 0.0) + float(value)
    found = {ours: values[n] for ours, names in _COUNTERS.items() for n in names if n in values}
    if "num_steps" in found and "fastkernels_graph_step_ratio" in values:
        found["num_graph_steps"] = round(values["fastkernels_graph_step_ratio"] * found["num_steps"])
    if "fastkernels_peak_memory_bytes" in values:
        found["peak_memory_bytes"] = values["fastkernels_peak_memory_bytes"]
    return found


def _repeat(
    side: Side,
    number: int,
    records: list[RequestRecord],
    before: dict[str, float],
    after: dict[str, float],
    gpu_busy_share: float | None,
    makes_tokens: bool,
) -> Json:
    """makes_tokens: of the model, which a load of which every request failed does not show."""
    ordered = sorted(records, key=lambda r: r.index)
    has_tokens = makes_tokens and all(r.token_ids is not None for r in ordered if r.is_complete)
    if has_tokens:
        said = digest([r.token_ids or [] for r in ordered])
        answers = {r.index: r.token_ids for r in ordered if r.is_complete}
        side.tokens[number] = [answers.get(index) for index in range(max(answers, default=-1) + 1)]
    else:
        said = hashlib.sha256("\0".join(r.text for r in ordered).encode()).hexdigest()
    points = load_token_times(ordered) if makes_tokens else answer_times(ordered)
    kept = points[:: -(-len(points) // _MOST_POINTS) or 1]
    peak = after.pop("peak_memory_bytes", None)
    return {
        "repeat": number,
        "seconds": max((r.start_s + r.e2e_s for r in ordered if r.e2e_s is not None), default=0.0),
        "digest": said,
        "digest_of": "token ids" if has_tokens else "texts" if makes_tokens else "answers",
        "token_times" if makes_tokens else "answer_times": kept + points[-1:],
        "counters": {name: value - before.get(name, 0.0) for name, value in after.items()},
        "peak_memory_bytes": int(peak) if peak else None,
        "gpu_busy_share": gpu_busy_share,
        "requests": [r.to_json() for r in ordered],
        "_records": ordered,
    }
