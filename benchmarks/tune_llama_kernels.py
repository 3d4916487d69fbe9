"""Tries launch configurations of the Llama kernels on a GPU and prints the fastest: the source of their heuristics.

`--warm I/N` compiles every N-th configuration and times nothing, so that N processes fill Triton's cache first.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import kernel_timing as timing
import llama_kernels as bench
import torch

from fastkernels.kernels import flash_attn_decode as decode
from fastkernels.kernels import flash_attn_hopper
from fastkernels.kernels import flash_attn_prefill as prefill
from fastkernels.kernels import flash_attn_varlen as varlen
from fastkernels.kernels import rms_norm as norm
from fastkernels.kernels import rotary_emb as rotary
from fastkernels.kernels import silu_and_mul as silu
from fastkernels.kernels import store_kvcache as store
from fastkernels.workloads import find_traffic

LONGEST = 8192


@dataclass
class Sweep:
    """Configurations of one kernel: `owner.name` is replaced by a function that returns each in turn."""

    owner: Any
    name: str
    configurations: list[Any]
    case: str
    calls: list[timing.Call]

    def run(self, warm: tuple[int, int] | None) -> list[tuple[str, float]]:
        original = getattr(self.owner, self.name)
        times = []
        chosen = self.configurations if warm is None else self.configurations[warm[0] :: warm[1]]
        for configuration in [None, *chosen]:
            if configuration is not None:
                setattr(self.owner, self.name, lambda *_, c=configuration: c)
            try:
                if warm is None:
                    times.append((str(configuration), timing.graph_microseconds(self.calls, 15.0)))
                else:
                    self.calls[0]()
            except Exception as error:
                torch.cuda.synchronize()
                print(f"{self.case} {configuration}: {type(error).__name__} {str(error)[:80]}", flush=True)
            finally:
                setattr(self.owner, self.name, original)
        return times

    def report(self, times: list[tuple[str, float]]) -> None:
        ranked = sorted(times, key=lambda item: item[1])
        best = "; ".join(f"{name} {t:.2f}" for name, t in ranked[:5])
        print(f"{self.case:26s} default {dict(times).get('None', -1):.2f} | {best}", flush=True)


def row_sweeps() -> list[Sweep]:
    sweeps = []
    tiles = [norm.RowTile(True, 4096, warps) for warps in (4, 8, 16)]
    tiles += [norm.RowTile(False, block, warps) for block, warps in product((1024, 2048, 4096), (4, 8, 16))]
    weight = timing.randn(bench.HIDDEN)
    for m in (1, 32, 256, 8192):
        sets = [timing.randn(2, m, bench.HIDDEN) for _ in range(timing.num_sets(4 * m * bench.HIDDEN * 2))]
        calls: list[timing.Call] = [lambda x=x: norm.add_rms_norm(x[0], x[1], weight, 1e-5) for x in sets]
        sweeps.append(Sweep(norm, "row_tile", tiles, f"add_rms_norm {m}", calls))
        calls = [lambda x=x: norm.rms_norm(x[0], weight, 1e-5) for x in sets]
        sweeps.append(Sweep(norm, "row_tile", tiles, f"rms_norm {m}", calls))
        sets = [timing.randn(m, 2 * bench.INNER) for _ in range(timing.num_sets(6 * m * bench.INNER))]
        blocks = [(b, w) for b, w in product((256, 512, 1024, 2048, 4096), (1, 2, 4, 8)) if 4 <= b // (32 * w) <= 64]
        calls = [lambda x=x: silu.silu_and_mul(x) for x in sets]
        sweeps.append(Sweep(silu, "block_and_warps", blocks, f"silu_and_mul {m}", calls))
        sweeps.append(rotary_sweep(m))
        sweeps.append(store_sweep(m))
    return sweeps


def rotary_sweep(num_tokens: int) -> Sweep:
    width = (bench.HEADS + 2 * bench.KV_HEADS) * bench.HEAD_SIZE
    table = torch.rand(131072, bench.HEAD_SIZE, device="cuda")
    split = bench.HEADS * bench.HEAD_SIZE, bench.KV_HEADS * bench.HEAD_SIZE
    calls: list[timing.Call] = []
    for _ in range(timing.num_sets(num_tokens * width * 4)):
        positions = torch.randint(0, 131072, (num_tokens,), device="cuda")
        q, k, _ = timing.randn(num_tokens, width).split((*split, split[1]), dim=-1)
        calls.append(lambda p=positions, q=q, k=k: rotary.rotary_embedding(p, q, k, table, 128, 128, True))
    blocks = list(product((1, 2, 4, 8), (1, 2, 4, 8)))
    return Sweep(rotary, "blocks_and_warps", blocks, f"rotary_embedding {num_tokens}", calls)


def store_sweep(num_tokens: int) -> Sweep:
    width = bench.KV_HEADS * bench.HEAD_SIZE
    count = timing.num_sets(num_tokens * width * 8)
    cache = timing.randn(2, count * -(-num_tokens // 16) + 1, 16, bench.KV_HEADS, bench.HEAD_SIZE)
    calls: list[timing.Call] = []
    for i in range(count):
        qkv = timing.randn(num_tokens, 6 * width)
        k, v = (x.unflatten(1, (bench.KV_HEADS, bench.HEAD_SIZE)) for x in qkv.split(width, dim=-1)[-2:])
        slots = torch.arange(num_tokens, device="cuda") + i * num_tokens
        calls.append(lambda k=k, v=v, s=slots: store.store_kvcache(k, v, cache[0], cache[1], s))
    tiles = [
        (t, b, w) for t, b, w in product((1, 2, 4, 8), (256, 512, 1024), (1, 2, 4, 8)) if 4 <= t * b // 32 // w <= 64
    ]
    return Sweep(store, "tile", tiles, f"store_kvcache {num_tokens}", calls)


def decode_sweeps() -> list[Sweep]:
    shapes = [(16, 1), (32, 1), (32, 2), (64, 2), (64, 4), (128, 4), (128, 8)]
    splits = {
        (1, 512): (4, 8, 16), (1, 8192): (16, 32, 64), (8, 2048): (2, 4, 8), (32, 640): (1, 2, 3, 4),
        (32, 8192): (1, 2, 4, 8), (256, 640): (1, 2), (256, 2048): (1, 2),
    }  # fmt: skip
    sweeps = []
    for (batch, context), counts in splits.items():
        sets, _ = bench.decode_sets(batch, context)
        stages = (2, 3, 4, 5)
        tiles = [decode.DecodeTile(n, s, w, k, h) for s, (n, w), k in product(counts, shapes, stages) for h in (0, n)]
        calls: list[timing.Call] = [
            lambda s=s, c=context: decode.flash_attn_decode(s[0], s[1][0], s[1][1], s[2], s[3], c, bench.SCALE)
            for s in sets
        ]
        sweeps.append(Sweep(decode, "decode_tile", tiles, f"decode {batch} x {context}", calls))
    return sweeps


def uneven_lengths(batch: int, seed: int) -> torch.Tensor:
    """Tokens of sequences that run at one time in the Azure conversation trace: the longer an answer, the likelier."""
    requests = find_traffic("azure_conv").requests(128_256)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(torch.tensor([float(r.output_len) for r in requests]), batch, generator=generator)
    made = torch.rand(batch, generator=generator)
    lengths = [
        len(requests[i].prompt_token_ids) + int(u * requests[i].output_len) for i, u in zip(drawn, made, strict=True)
    ]
    return torch.tensor(lengths, dtype=torch.int32).clamp(1, LONGEST)


def uneven_sweeps() -> list[Sweep]:
    """Decodes of a graph, which is captured for the longest sequence there may be, over lengths as traffic has them."""
    sweeps = []
    for batch in (16, 36, 64, 128, 181, 256):
        calls: list[timing.Call] = []
        num_bytes = 0
        for seed in range(3):
            lengths = uneven_lengths(batch, seed)
            width, num_keys = -(-int(lengths.max()) // bench.PAGE), int(lengths.sum())
            table = torch.randperm(batch * width, device="cuda", dtype=torch.int32).view(batch, width)
            cache = timing.randn(2, batch * width, bench.PAGE, bench.KV_HEADS, bench.HEAD_SIZE)
            query, lengths = timing.randn(batch, bench.HEADS, bench.HEAD_SIZE), lengths.cuda()
            calls.append(
                lambda q=query, c=cache, n=lengths, t=table: decode.flash_attn_decode(
                    q, c[0], c[1], n, t, LONGEST, bench.SCALE
                )
            )
            num_bytes += num_keys * 2 * bench.KV_HEADS * bench.HEAD_SIZE * 2
        splits = [(1, 1), *product((2, 4, 8, 16), (1, 4, 8, 16, 32))]
        shapes = [(32, 2, 3), (64, 4, 2), (64, 4, 3), (64, 8, 3), (64, 8, 5), (128, 8, 2)]
        tiles = [decode.DecodeTile(n, s, w, k, 0, least) for (s, least), (n, w, k) in product(splits, shapes)]
        case = f"decode {batch} of a trace, {num_bytes / 3e6:.0f} MB"
        sweeps.append(Sweep(decode, "decode_tile", tiles, case, calls))
    return sweeps


def prefill_sweeps() -> list[Sweep]:
    """The tiles of Triton's path, which GPUs other than Hopper and calls that the Gluon kernel lacks take."""
    flash_attn_hopper.supports = lambda *_: False
    sweeps = []
    shapes = [(128, 64, 8), (128, 128, 8), (64, 64, 4), (128, 32, 8), (64, 128, 4), (64, 32, 4), (128, 64, 4)]
    tiles = [prefill.PrefillTile(*s, stages) for s, stages in product(shapes, (2, 3, 4))]
    for batch, length in ((16, 512), (8, 2048), (1, 8192)):
        starts = torch.arange(batch + 1, dtype=torch.int32, device="cuda") * length
        q, k, v = timing.randn(batch * length, 48, 128).split((32, 8, 8), dim=1)
        calls: list[timing.Call] = [
            lambda q=q, k=k, v=v, s=starts, n=length: prefill.flash_attn_prefill(q, k, v, s, n, bench.SCALE)
        ] * 2
        sweeps.append(Sweep(prefill, "prefill_tile", tiles, f"prefill {batch} x {length}", calls))
        cache = timing.randn(2, batch * length // 16, 16, 8, 128)
        table = torch.randperm(batch * length // 16, device="cuda", dtype=torch.int32).view(batch, -1)
        lens = torch.full((batch,), length, dtype=torch.int32, device="cuda")
        calls = [
            lambda q=q, c=cache, s=starts, m=lens, t=table, n=length: varlen.flash_attn_varlen(
                q, c[0], c[1], s, m, t, n, n, bench.SCALE
            )
        ] * 2
        sweeps.append(Sweep(prefill, "prefill_tile", tiles, f"paged {batch} x {length}", calls))
    return sweeps


FAMILIES = {"rows": row_sweeps, "decode": decode_sweeps, "uneven": uneven_sweeps, "prefill": prefill_sweeps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--warm")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warm = None
    if arguments.warm:
        index, count = arguments.warm.split("/")
        warm = int(index), int(count)
        timing.COLD_BYTES = 0
    results = {}
    for family in arguments.families:
        for sweep in FAMILIES[family]():
            times = sweep.run(warm)
            if warm is None:
                sweep.report(times)
                results[sweep.case] = times
    if arguments.out:
        arguments.out.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
