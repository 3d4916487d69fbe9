"""Times sampling on a GPU: the argmax beside torch's, and the engine's sampler on bf16 logits of Llama 3's vocabulary.

Usage: python benchmarks/sampler.py --out benchmarks/results/h200/sampler.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kernel_timing import environment, event_microseconds, graph_microseconds, num_sets
from torch import Tensor

from fastkernels.engine.sampler import Sampler
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.tasks.baseline.L1.greedy_sample import GreedySample
from fastkernels.tasks.baseline.L1.top_logprobs import TopLogprobs

VOCAB_SIZE = 128_256
ARGMAX_ROWS = (1, 8, 32, 64, 256, 512)
PIPELINE_ROWS = (1, 32, 256)
ALL = {
    "temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.02, "presence_penalty": 0.5, "frequency_penalty": 0.2,
    "repetition_penalty": 1.1, "logit_bias": {7: 2.0, 9: -3.0}, "logprobs": 5,
}  # fmt: skip
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top_k and top_p": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    "min_p": {"temperature": 0.8, "min_p": 0.05},
    "penalties": {"temperature": 0.0, "presence_penalty": 0.5, "repetition_penalty": 1.1},
    "greedy and 5 logprobs": {"temperature": 0.0, "logprobs": 5},
    "greedy and 20 logprobs": {"temperature": 0.0, "logprobs": 20},
    "allowed tokens": {"temperature": 0.0, "allowed_token_ids": tuple(range(0, VOCAB_SIZE, 3))},
    "all": ALL,
}


def logits_sets(num_rows: int) -> list[Tensor]:
    sets = num_sets(num_rows * VOCAB_SIZE * 2)
    return [torch.randn(num_rows, VOCAB_SIZE, device="cuda").mul_(2).bfloat16() for _ in range(sets)]


def argmax_line(num_rows: int) -> dict[str, Any]:
    sets, op = logits_sets(num_rows), GreedySample()
    for x in sets[:2]:
        assert x.gather(1, op(x)[:, None]).equal(x.gather(1, x.argmax(-1, keepdim=True)))

    def times(function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        cold = graph_microseconds([partial(function, x) for x in sets])
        return cold, graph_microseconds([partial(function, sets[0])] * 20)

    (ours, ours_warm), (torchs, torchs_warm) = times(op), times(partial(torch.argmax, dim=-1))
    return {
        "num_rows": num_rows, "us": ours, "torch_us": torchs, "warm_us": ours_warm, "torch_warm_us": torchs_warm,
    }  # fmt: skip


def pipeline_line(num_rows: int, name: str) -> dict[str, Any]:
    sets = logits_sets(num_rows)
    sampler = Sampler(VOCAB_SIZE, torch.device("cuda"), num_rows)
    started = time.perf_counter()
    for row in range(num_rows):
        sampler.add(row, SamplingParams(**REQUESTS[name]), row, list(range(row, row + 500)))
    add_us = (time.perf_counter() - started) * 1e6 / num_rows
    rows = list(range(num_rows))
    row_index, positions = torch.arange(num_rows, device="cuda"), torch.full((num_rows,), 500, device="cuda")
    sampler(sets[0], rows, row_index, positions)
    torch.cuda.synchronize()
    calls = [partial(sampler, x, rows, row_index, positions) for x in sets]
    started = time.perf_counter()
    for call in calls:
        call()
    launch_us = (time.perf_counter() - started) * 1e6 / len(calls)
    torch.cuda.synchronize()
    line = {
        "num_rows": num_rows,
        "requests": name,
        "us": graph_microseconds(calls),
        "eager_us": event_microseconds(calls),
    }
    return line | {"launch_us": launch_us, "add_us": add_us}


def logprobs_line(num_rows: int, num: int) -> dict[str, Any]:
    sets, op = logits_sets(num_rows), TopLogprobs(num)
    tokens = [x.argmax(-1) for x in sets]
    ours = graph_microseconds([partial(op, x, t) for x, t in zip(sets, tokens, strict=True)])

    def by_softmax(x: Tensor, token_ids: Tensor) -> object:
        logprobs = x.float().log_softmax(-1)
        chosen = logprobs.gather(1, token_ids[:, None])
        return logprobs.topk(num, dim=-1), chosen, (logprobs > chosen).sum(-1)

    torchs = graph_microseconds([partial(by_softmax, x, t) for x, t in zip(sets, tokens, strict=True)])
    return {"num_rows": num_rows, "num_logprobs": num, "us": ours, "torch_us": torchs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"environment": environment(), "vocab_size": VOCAB_SIZE, "dtype": "bfloat16"}
    result["argmax"] = [argmax_line(n) for n in ARGMAX_ROWS]
    result["logprobs"] = [logprobs_line(n, k) for n in PIPELINE_ROWS for k in (5, 20)]
    result["pipeline"] = [pipeline_line(n, name) for n in PIPELINE_ROWS for name in REQUESTS]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for part in ("argmax", "logprobs", "pipeline"):
        for line in result[part]:
            print(part, " ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()))


if __name__ == "__main__":
    main()
