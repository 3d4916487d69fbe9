"""What a Prometheus server scrapes."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fastkernels.engine.outputs import EngineInfo, EngineStats

_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_NEXT_TOKEN = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.4, 0.8, 1.6, 5)
_WHOLE = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)


class Metrics:
    """Histograms of what clients wait for, requests by outcome, and the engine's own counters when scraped."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fastkernels_requests",
            "Requests by route, outcome (finished, aborted, rejected, failed) and status.",
            ["route", "outcome", "status"],
            registry=self.registry,
        )
        self._first = self._histogram("time_to_first_token", "From arrival to the first token.", _FIRST_TOKEN)
        self._next = self._histogram("inter_token_latency", "Between a request's tokens.", _NEXT_TOKEN)
        self._whole = self._histogram("e2e_request_latency", "From arrival to the end of the answer.", _WHOLE)
        self._engine = _EngineCollector()
        self.registry.register(self._engine)

    def first_token(self, seconds: float) -> None:
        self._first.observe(seconds)

    def next_token(self, seconds: float) -> None:
        self._next.observe(seconds)

    def finished(self, seconds: float) -> None:
        self._whole.observe(seconds)

    def render(self, info: EngineInfo | None, stats: EngineStats | None) -> bytes:
        self._engine.info, self._engine.stats = info, stats or self._engine.stats
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"fastkernels_{name}_seconds", text, buckets=buckets, registry=self.registry)


class _EngineCollector(Collector):
    def __init__(self) -> None:
        self.info: EngineInfo | None = None
        self.stats: EngineStats | None = None

    def collect(self) -> Iterator[Metric]:
        if self.info is None or self.stats is None:
            return
        info, stats = self.info, self.stats
        used = info.num_pages - stats.num_free_pages
        gauges = {
            "num_requests_running": ("Requests that the engine computes.", stats.num_running),
            "num_requests_waiting": ("Requests that wait for room.", stats.num_waiting),
            "num_pages": ("Pages of the KV cache.", info.num_pages),
            "num_free_pages": ("Pages that a request may take.", stats.num_free_pages),
            "kv_cache_usage_ratio": ("Share of the pages in use.", used / max(1, info.num_pages)),
            "graph_step_ratio": ("Share of steps run as graphs.", stats.num_graph_steps / max(1, stats.num_steps)),
            "peak_memory_bytes": ("Most memory that the device held.", stats.peak_memory_bytes),
        }  # fmt: skip
        counters = {
            "steps": ("Steps of the engine.", stats.num_steps),
            "prompt_tokens": ("Prompt tokens of requests begun.", stats.num_prompt_tokens),
            "prefix_cache_hit_tokens": ("Prompt tokens that the prefix cache held.", stats.num_cached_tokens),
            "generation_tokens": ("Tokens made.", stats.num_generated_tokens),
            "preemptions": ("Requests that gave way and were computed again.", stats.num_preemptions),
            "compilations": ("CUDA graphs captured and steps compiled.", stats.num_compilations),
            "kernels_made": ("Kernels compiled, or fetched from the compiler's cache.", stats.num_kernels_made),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"fastkernels_{name}", text, value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"fastkernels_{name}", text, value)
