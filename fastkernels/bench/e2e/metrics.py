"""What a load or an offline run comes to. Pure functions; definitions as in `vllm bench serve`.

TTFT: from sending to the first piece. TPOT: (E2E - TTFT) / (output tokens - 1), for answers of more than one token.
ITL: gaps between pieces, of all answers together. E2E: from sending to the last piece.
https://github.com/vllm-project/vllm/blob/main/vllm/benchmarks/serve.py
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from fastkernels.bench.e2e.load import RequestRecord
from fastkernels.scoring.statistics import percentile

Json = dict[str, Any]
LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}
PIPELINE_LATENCIES = {"batch": "In the batch", "alone": "Alone", "prepare": "Preparation"}
"""Of a model that makes no tokens: from a request's first step to its result; all of it with nothing else under way;
from its inputs to its tensors."""
_NUM_RESAMPLES = 2000


def tpot(record: RequestRecord) -> float | None:
    """Seconds a token after the first; None for an answer of one token, or of none."""
    assert record.e2e_s is not None
    if record.ttft_s is None or record.output_len < 2:
        return None
    return (record.e2e_s - record.ttft_s) / (record.output_len - 1)


def latencies(records: Sequence[RequestRecord]) -> dict[str, list[float]]:
    """Seconds by name of LATENCIES, of the requests that came to their end."""
    done = [r for r in records if r.is_complete]
    return {
        "ttft": [r.ttft_s for r in done if r.ttft_s is not None],
        "tpot": [value for r in done if (value := tpot(r)) is not None],
        "itl": [gap for r in done for gap in r.itl_s],
        "e2e": [r.e2e_s for r in done if r.e2e_s is not None],
    }


def spread_ms(seconds: Sequence[float]) -> Json | None:
    """Milliseconds; None of nothing."""
    if not seconds:
        return None
    values = sorted(1000 * s for s in seconds)
    shares = {f"p{share}": percentile(values, share / 100) for share in (50, 90, 99)}
    return {"count": len(values), "mean": fmean(values), **shares, "min": values[0], "max": values[-1]}


def load_summary(records: Sequence[RequestRecord], goodput_ms: Mapping[str, float] | None = None) -> Json:
    """Throughput, latencies and concurrency; tokens where answers have them, and of answers in one piece E2E alone.

    goodput_ms: limits of ttft, tpot and e2e that a good request keeps.
    """
    done = [r for r in records if r.is_complete]
    if not done:
        return {"num_completed": 0, "num_failed": len(records), "duration_s": 0.0}
    duration = max(r.start_s + (r.e2e_s or 0.0) for r in done)
    summary: Json = {
        "num_completed": len(done),
        "num_failed": len(records) - len(done),
        "duration_s": duration,
        **(_token_figures(done, duration) if any(r.output_len for r in done) else {}),
        "requests_per_s": len(done) / duration,
        "peak_concurrency": peak_concurrency(done),
        **{name: spread_ms(values) for name, values in latencies(done).items()},
    }
    if goodput_ms:
        num_good = sum(_is_good(r, goodput_ms) for r in done)
        summary["goodput"] = {
            "limits_ms": dict(goodput_ms), "num_good": num_good, "requests_per_s": num_good / duration
        }  # fmt: skip
    return summary


def _token_figures(done: Sequence[RequestRecord], duration: float) -> Json:
    num_prompt, num_output = sum(r.prompt_len for r in done), sum(r.output_len for r in done)
    return {
        "num_prompt_tokens": num_prompt,
        "num_output_tokens": num_output,
        "output_tokens_per_s": num_output / duration,
        "total_tokens_per_s": (num_prompt + num_output) / duration,
    }


def _is_good(record: RequestRecord, limits_ms: Mapping[str, float]) -> bool:
    """TPOT of an answer of one token counts as 0."""
    values = {"ttft": record.ttft_s, "tpot": tpot(record) or 0.0, "e2e": record.e2e_s}
    return all(1000 * (values[name] or 0.0) <= limit for name, limit in limits_ms.items())


def peak_concurrency(records: Sequence[RequestRecord]) -> int:
    """Most requests that were under way at one moment."""
    changes = [(r.start_s, 1) for r in records] + [(r.start_s + (r.e2e_s or 0.0), -1) for r in records]
    now = most = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def load_token_times(records: Sequence[RequestRecord]) -> list[tuple[float, float]]:
    """[seconds, output tokens by then]: a request's tokens are spread evenly over its pieces, of which an answer that
    comes whole is one."""
    at: list[tuple[float, float]] = []
    for record in records:
        if record.is_complete and record.ttft_s is None:
            at.append((record.start_s + (record.e2e_s or 0.0), float(record.output_len)))
        elif record.is_complete and record.ttft_s is not None:
            now = record.start_s + record.ttft_s
            each = record.output_len / (1 + len(record.itl_s))
            at.append((now, each))
            for gap in record.itl_s:
                now += gap
                at.append((now, each))
    made = 0.0
    found = []
    for seconds, tokens in sorted(at):
        made += tokens
        found.append((round(seconds, 6), made))
    return found


def answer_times(records: Sequence[RequestRecord]) -> list[tuple[float, float]]:
    """[seconds, answers by then]."""
    ends = sorted(r.start_s + r.e2e_s for r in records if r.is_complete and r.e2e_s is not None)
    return [(round(end, 6), float(number)) for number, end in enumerate(ends, 1)]


def offline_summary(repeat: Json) -> Json:
    """Of one pass over the requests."""
    num_prompt = sum(r["prompt_len"] for r in repeat["requests"])
    num_output = sum(r["output_len"] for r in repeat["requests"])
    seconds = repeat["seconds"]
    return {
        "num_completed": len(repeat["requests"]),
        "num_failed": 0,
        "duration_s": seconds,
        "num_prompt_tokens": num_prompt,
        "num_output_tokens": num_output,
        "requests_per_s": len(repeat["requests"]) / seconds,
        "output_tokens_per_s": num_output / seconds,
        "total_tokens_per_s": (num_prompt + num_output) / seconds,
    }


def pipeline_latencies(repeats: Sequence[Json]) -> dict[str, list[float]]:
    """Seconds by name of PIPELINE_LATENCIES, of every request of the repeats."""
    keys = {"batch": "e2e_s", "alone": "alone_s", "prepare": "prepare_s"}
    requests = [request for repeat in repeats for request in repeat["requests"]]
    return {name: [r[key] for r in requests if r[key] is not None] for name, key in keys.items()}


def pipeline_summary(repeat: Json) -> Json:
    """Of one pass of a model that makes no tokens. steps_per_s: each request's steps count."""
    num, seconds = len(repeat["requests"]), repeat["seconds"]
    num_steps = sum(request["num_steps"] for request in repeat["requests"])
    return {
        "num_completed": num,
        "num_failed": 0,
        "duration_s": seconds,
        "num_request_steps": num_steps,
        "requests_per_s": num / seconds,
        "steps_per_s": num_steps / seconds,
        **{name: spread_ms(values) for name, values in pipeline_latencies([repeat]).items()},
    }


def engine_shares(counters: Mapping[str, float]) -> Json:
    """What counters of a pass say of the engine; None where it was not told or nothing ran."""

    def share(part: str, whole: str) -> float | None:
        return counters[part] / counters[whole] if counters.get(whole) and part in counters else None

    return {
        "graph_hit_share": share("num_graph_steps", "num_steps"),
        "prefix_hit_share": share("num_cached_tokens", "num_prompt_tokens"),
        "num_steps": counters.get("num_steps"),
        "num_preemptions": counters.get("num_preemptions"),
        "num_compilations": counters.get("num_compilations"),
        "num_kernels_made": counters.get("num_kernels_made"),
    }


def median_summary(summaries: Sequence[Json]) -> Json:
    """The repeat of the median duration, with the durations of all; of those of which nothing came back only when all
    are."""
    answered = [s for s in summaries if s["duration_s"]] or summaries
    ordered = sorted(answered, key=lambda s: s["duration_s"])
    chosen = ordered[(len(ordered) - 1) // 2]
    return {
        **chosen,
        "durations_s": [s["duration_s"] for s in summaries],
        "batch_latency": spread_ms([s["duration_s"] for s in answered]),
    }


def ratio(baseline: Sequence[float], candidate: Sequence[float]) -> Json:
    """Median baseline seconds over median candidate seconds (above 1: the candidate is faster), with a 95 % interval
    by resampling each side; one repeat a side has none."""
    found: Json = {"ratio": median(baseline) / median(candidate), "low": None, "high": None}
    if min(len(baseline), len(candidate)) > 1:
        generator = random.Random(0)
        ratios = sorted(
            median(generator.choices(baseline, k=len(baseline)))
            / median(generator.choices(candidate, k=len(candidate)))
            for _ in range(_NUM_RESAMPLES)
        )
        tail = int(0.025 * _NUM_RESAMPLES)
        found |= {"low": ratios[tail], "high": ratios[-1 - tail]}
    return found


def latency_ratios(baseline: Mapping[str, Sequence[float]], candidate: Mapping[str, Sequence[float]]) -> Json:
    """Median over median by the baseline's names (above 1: the candidate is faster), of those that both have."""
    return {
        name: median(baseline[name]) / median(candidate[name])
        for name in baseline
        if baseline[name] and candidate[name] and median(candidate[name]) > 0
    }
