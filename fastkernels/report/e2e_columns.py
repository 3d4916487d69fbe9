"""Which figures an end-to-end run has, by what the model makes: the columns of its tables, on a page and a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastkernels.bench.e2e.metrics import LATENCIES, PIPELINE_LATENCIES
from fastkernels.registry import Kind

Json = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A figure by its key in a summary. form: "number" with so many digits, "share" or "bytes"."""

    key: str
    title: str
    short: str
    digits: int = 1
    form: str = "number"


_REQUESTS = Column("requests_per_s", "Requests/s", "requests/s", 2)
_STEPS = Column("steps_per_s", "Steps/s", "steps/s", 2)
_TOKENS = (
    Column("output_tokens_per_s", "Output tokens/s", "output tok/s"),
    Column("total_tokens_per_s", "Total tokens/s", "total tok/s"),
)
_BUSY = Column("gpu_busy_share", "GPU busy", "GPU busy", form="share")
_GRAPHS = Column("graph_hit_share", "Graph hits", "graph hits", form="share")
_BATCHES = Column("num_steps", "Batches", "batches", 0)
_PEAK = Column("peak_memory_bytes", "Peak memory", "peak GB", 2, "bytes")
_CACHE = (
    Column("prefix_hit_share", "Prefix hits", "prefix hits", form="share"),
    Column("num_preemptions", "Preemptions", "preempted", 0),
)


def kind_of(results: Json) -> Kind:
    """Of the model of a run; runs from before this was written down made tokens."""
    return Kind((results.get("workload") or {}).get("kind", Kind.AUTOREGRESSIVE))


def makes_tokens(results: Json) -> bool:
    return kind_of(results) is Kind.AUTOREGRESSIVE


def is_load(results: Json) -> bool:
    """Over HTTP; else offline."""
    return results.get("mode") == "serving"


def throughput_columns(results: Json) -> tuple[Column, ...]:
    """Of a side's summary; the first is what a report leads with."""
    if makes_tokens(results):
        return (_REQUESTS, *_TOKENS)
    return (_REQUESTS, _STEPS) if kind_of(results) is Kind.ITERATIVE and not is_load(results) else (_REQUESTS,)


def engine_columns(results: Json) -> tuple[Column, ...]:
    """Of a side's engine_summary."""
    if makes_tokens(results):
        return (_BUSY, _GRAPHS, *_CACHE, _PEAK)
    return (_BUSY, _GRAPHS, _BATCHES, _PEAK)


def latency_names(results: Json) -> dict[str, str]:
    """Of the latencies that the run has; a run of tokens has them under load alone."""
    if makes_tokens(results):
        return LATENCIES if is_load(results) else {}
    return {"e2e": LATENCIES["e2e"]} if is_load(results) else PIPELINE_LATENCIES
