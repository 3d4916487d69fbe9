"""Times one decode step of Llama 3.1 8B as the engine replays it: `python benchmarks/decode_step.py --out FILE`.

A step is the CUDA graph that fastkernels/engine/graphs.py captures: from token ids to logits and each row's likeliest
token. The model has random weights, the cache random keys and values in scattered pages. Medians of replays that take
turns over all numbers of rows and variants. `--without NAME` also times steps that lack an op, or a part of how they
are made: what it costs or saves between the others, which is not what it takes alone. Whole steps
are timed of --without-rows, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kernel_timing import copy_row, environment
from torch import Tensor

from fastkernels.cache import CacheKind, cached_layers
from fastkernels.context import Phase
from fastkernels.engine.batch import StepInputs
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.executor import ModelExecutor
from fastkernels.engine.graphs import GraphPool
from fastkernels.kernels import flash_attn_decode
from fastkernels.tasks.baseline.L1.flash_attn_decode import FlashAttnDecode
from fastkernels.tasks.baseline.L1.rms_norm import RMSNorm
from fastkernels.tasks.baseline.L1.rotary_emb import RotaryEmbedding
from fastkernels.tasks.baseline.L1.silu_and_mul import SiluAndMul
from fastkernels.tasks.baseline.L1.store_kvcache import StoreKVCache

MODEL, PAGE, MAX_MODEL_LEN = "llama-3.1-8b", 16, 8192
UNTIMED = 2


def _first_half(op: SiluAndMul, x: Tensor) -> Tensor:
    return x[..., : x.shape[-1] // 2]


def _unnormed(op: RMSNorm, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    return x if residual is None else (x, residual)


def _nothing_early() -> bool:
    return False


def _no_counters(count: int) -> None:
    return None


LEFT_OUT: dict[str, tuple[Any, str, Callable[..., object]]] = {
    "flash_attn_decode": (FlashAttnDecode, "forward", lambda op, query, *rest: query),
    "rms_norm": (RMSNorm, "forward", _unnormed),
    "rotary_emb": (RotaryEmbedding, "forward", lambda op, positions, query, key: (query, key)),
    "silu_and_mul": (SiluAndMul, "forward", _first_half),
    "store_kvcache": (StoreKVCache, "forward", lambda op, *tensors: None),
    "reading_earlier_steps": (flash_attn_decode, "may_read_earlier_steps", _nothing_early),
    "merging_in_the_last_program": (flash_attn_decode, "step_counters", _no_counters),
}
"""The first five: ops that pass on what they are given. The others: the step without a part of how it is made."""


@contextmanager
def left_out(name: str | None) -> Iterator[None]:
    """Steps captured inside lack an op, or a part of how they are made."""
    if name is None:
        yield
        return
    owner, attribute, instead = LEFT_OUT[name]
    before = getattr(owner, attribute)
    setattr(owner, attribute, instead)
    try:
        yield
    finally:
        setattr(owner, attribute, before)


def build_executor(most_rows: int, context: int) -> ModelExecutor:
    """The engine's executor with pages for that many sequences, full of random keys and values."""
    executor = ModelExecutor(
        EngineConfig(
            MODEL,
            device="cuda",
            max_num_seqs=most_rows,
            max_model_len=MAX_MODEL_LEN,
            page_size=PAGE,
            num_pages=most_rows * -(-context // PAGE) + 1,
        )
    )
    for layer in cached_layers(executor.model):
        layer.kv_cache.normal_()
    return executor


def step_inputs(num_rows: int, context: int, most_rows: int) -> StepInputs:
    """A decode step of `num_rows` sequences of `context` tokens, the new one included."""
    rng = np.random.default_rng(0)
    pages = rng.permutation(most_rows * -(-context // PAGE)).reshape(most_rows, -1)[:num_rows].astype(np.int32)
    rows, ones = np.arange(num_rows), np.ones(num_rows, dtype=np.int64)
    last = ones * (context - 1)
    return StepInputs(
        rows=rows,
        starts=last,
        counts=ones,
        token_ids=rng.integers(0, 128000, num_rows),
        positions=last,
        slot_mappings={CacheKind.FULL: pages[:, -1].astype(np.int64) * PAGE + last % PAGE},
        block_tables={CacheKind.FULL: pages},
        sample_index=rows,
        sample_rows=rows,
        phase=Phase.DECODE,
        encoder_lens=0 * ones,
        encoder_slots=np.empty(0, dtype=np.int64),
    )


class Step:
    """The captured step of a number of rows; it keeps the pool whose buffers the graph reads."""

    def __init__(self, executor: ModelExecutor, num_rows: int, context: int, most_rows: int) -> None:
        self.num_rows = num_rows
        self.pool = GraphPool(executor.runner, [CacheKind.FULL])
        inputs = step_inputs(num_rows, context, most_rows)
        size = self.pool.size_for(inputs)
        assert size is not None
        with torch.inference_mode(), torch.cuda.stream(executor.runner.stream):
            self.pool.replay(inputs, size)
        self.graph, self.stream = self.pool.captured[size].graph, executor.runner.stream

    def microseconds(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self.stream):
            start.record()
            self.graph.replay()
            end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3


def take_turns(steps: dict[Any, Step], num_replays: int) -> dict[Any, list[float]]:
    """Times of each step, one of each in every round, without those of the first rounds."""
    times: dict[Any, list[float]] = {key: [] for key in steps}
    for _ in range(UNTIMED + num_replays):
        for key, step in steps.items():
            times[key].append(step.microseconds())
    return {key: values[UNTIMED:] for key, values in times.items()}


def least_bytes(executor: ModelExecutor, num_rows: int, context: int) -> int:
    """Every weight but the embedding, and the cached keys and values, read once."""
    model = executor.model
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    embedding = model.get_parameter("model.embed_tokens.weight")
    cache = sum(layer.kv_cache[:, 0, 0].numel() for layer in cached_layers(model)) * 2
    return weights - embedding.numel() * embedding.element_size() + num_rows * context * cache


def summary(times: Sequence[float]) -> dict[str, float]:
    return {
        "median_us": round(statistics.median(times), 1),
        "least_us": round(min(times), 1),
        "most_us": round(max(times), 1),
        "replays": len(times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--context", type=int, default=640)
    parser.add_argument("--replays", type=int, default=30)
    parser.add_argument("--without", nargs="*", default=[], choices=sorted(LEFT_OUT))
    parser.add_argument("--without-rows", type=int, nargs="*", default=[1, 32])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    copy_rate = copy_row().rate("ours")
    torch.cuda.empty_cache()
    whole_rows = sorted({*arguments.rows, *(arguments.without_rows if arguments.without else ())})
    most, context = max(whole_rows), arguments.context
    executor = build_executor(most, context)
    steps: dict[tuple[str | None, int], Step] = {}
    for name in [None, *arguments.without]:
        with left_out(name):
            for num_rows in whole_rows if name is None else arguments.without_rows:
                steps[name, num_rows] = Step(executor, num_rows, context, most)
    times = take_turns(steps, arguments.replays)
    num_layers = len(cached_layers(executor.model))
    rows, without = [], []
    for (name, num_rows), taken in times.items():
        found: dict[str, Any] = {"rows": num_rows, **summary(taken)}
        if name is None:
            num_bytes = least_bytes(executor, num_rows, context)
            floor = round(num_bytes / copy_rate / 1e6, 1)
            rows.append({**found, "bytes": num_bytes, "floor_us": floor})
            print(f"{num_rows:3d} rows {found['median_us']:8.1f} us, floor {floor:8.1f}")
        else:
            saved = statistics.median(times[None, num_rows]) - statistics.median(taken)
            without.append({"without": name, **found, "us_a_layer": round(saved / num_layers, 2)})
            print(f"{num_rows:3d} rows without {name}: {saved / num_layers:.2f} us a layer less")
    setting = {"model": MODEL, "context": context, "max_model_len": MAX_MODEL_LEN, "page_size": PAGE}
    timing = {"timing": "median of replays of one decode step's CUDA graph, taking turns; clocks as found"}
    result = {
        "environment": {**environment(), **timing}, "setting": {**setting, "copy_tb_per_s": round(copy_rate, 3)},
        "steps": rows, "lacking": without,
    }  # fmt: skip
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
