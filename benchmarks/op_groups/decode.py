"""Decode attention of GPT-OSS, with windows and sinks; tiles: the kernel of prompts, which also takes single tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from kernel_timing import num_sets
from torch import Tensor

from fastkernels.kernels.flash_attn_prefill import launch_tiles
from fastkernels.tasks.baseline.L1.flash_attn_varlen import FlashAttnVarlen
from op_groups.bench import Bench, Call, Row

PAGE = 16


def rows(bench: Bench) -> Iterator[Row]:
    for num, length in ((1, 8000), (8, 8000), (64, 2000), (256, 1000)) if not bench.is_rehearsal else ((3, 40),):
        for window in (bench.size(128, 9), None):
            yield _row(bench, num, length, window)


def _row(bench: Bench, num: int, length: int, window: int | None) -> Row:
    config = bench.config("gpt-oss-120b", "tiny-gpt-oss")
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_size
    init = {"num_heads": heads, "head_size": size, "scale": size**-0.5, "num_kv_heads": kv_heads}
    init |= {"window": window, "has_sinks": True}
    op = bench.build(FlashAttnVarlen, init, torch.bfloat16)
    op.sinks.data.normal_()  # type: ignore[union-attr]
    num_pages = -(-length // PAGE)
    table = torch.randperm(num * num_pages, device=bench.device).view(num, num_pages).int()
    lens, starts = bench.ints([length] * num), torch.arange(num + 1, device=bench.device).int()
    held = 4 * num * length * kv_heads * size
    caches = [bench.randn(2, num * num_pages, PAGE, kv_heads, size) for _ in range(min(8, num_sets(held)))]
    turn = iter(range(10**9))

    def make() -> tuple[object, ...]:
        cache = caches[next(turn) % len(caches)]
        return bench.randn(num, heads, size), *cache, starts, lens, table, 1, length, num

    def tiles(query: Tensor, key: Tensor, value: Tensor, *rest: object) -> Tensor:
        out = torch.empty_like(query)
        with bench.launching():
            launch_tiles(query, key, value, starts, lens, table, 1, 1, size**-0.5, out, window=window, sinks=op.sinks)
        return out

    others: dict[str, Call] = {"tiles": tiles} if bench.has_kernels else {}
    shape = f"{num} x {length}, window {window}"
    return bench.row("GPT-OSS-120B", shape, op, make, others, init=init)
