"""By which tile GPT-OSS-120B's experts are multiplied fastest: each of a layer's two products, by numbers of tokens.

    python benchmarks/mxfp4_moe.py --out benchmarks/results/h200/mxfp4_moe.json
    TRITON_INTERPRET=1 python benchmarks/mxfp4_moe.py --device cpu

The second is a rehearsal at tiny sizes in fp16, whose times mean nothing. kernel_timing.py says how it is timed; calls
take turns with routings and rows, so that experts are read from memory. Sorting is not in the times. "before" is the
kernel that fp32 takes, "grouped" unpacks all weights to memory before torch._grouped_mm. Kernels are compiled by
as many processes as there are cores first. What fails is in the file with its error, and so is what --seconds left
no time for.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kernel_timing import environment, graph_microseconds, num_sets
from torch import Tensor

from fastkernels.kernels.ahead import compiling_for
from fastkernels.kernels.moe_grouped_gemm import ExpertTile, by_grouped_mm
from fastkernels.kernels.mxfp4_moe import PackedTile, mxfp4_moe, unpack_mxfp4
from fastkernels.tasks.baseline.expert_gemm import padded_capacity
from fastkernels.tasks.baseline.L1.moe_align import MoEAlign
from fastkernels.tasks.baseline.L1.mxfp4_moe import MXFP4MoE, dequantize_mxfp4

CHECKED_SLOTS = 8


@dataclass(frozen=True)
class Sizes:
    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    dtype: torch.dtype

    def layers(self) -> dict[str, tuple[int, int, int]]:
        """(inputs, outputs, slots a row) of each product."""
        return {
            "w13": (self.hidden_size, 2 * self.intermediate_size, self.top_k),
            "w2": (self.intermediate_size, self.hidden_size, 1),
        }


PUBLISHED = Sizes(128, 4, 2880, 2880, torch.bfloat16)
TINY = Sizes(6, 2, 96, 64, torch.float16)


@dataclass(frozen=True)
class Variant:
    """tile None: unpacked to memory, then torch's grouped product."""

    block_size: int
    tile: PackedTile | ExpertTile | None

    @property
    def name(self) -> str:
        if self.tile is None:
            return f"rows {self.block_size}, grouped"
        if not isinstance(self.tile, PackedTile):
            return f"rows {self.block_size}, before"
        n, k, warps, stages, is_turned = self.tile
        return f"rows {self.block_size}, tile {n} x {k}, {warps} warps, {stages} stages{', turned' * is_turned}"


def _variants(block_size: int, *tiles: tuple[int, int, int, int, bool]) -> list[Variant]:
    return [Variant(block_size, PackedTile(*tile)) for tile in tiles]


_FEW = [
    *_variants(16, (64, 128, 4, 4, True), (64, 256, 4, 3, True), (128, 128, 8, 4, True)),
    *_variants(16, (64, 128, 4, 4, False), (64, 256, 4, 3, False), (32, 128, 2, 4, False), (32, 256, 4, 3, False)),
    Variant(16, ExpertTile(64, 128, 4, 3)),
]
VARIANTS: dict[int, list[Variant]] = {
    1: _FEW,
    8: _FEW,
    64: _FEW,
    512: [
        *_variants(16, (64, 128, 4, 4, True), (128, 128, 8, 4, True)),
        *_variants(32, (64, 128, 4, 4, True), (128, 128, 8, 4, True), (128, 64, 4, 4, True)),
        *_variants(64, (128, 64, 4, 4, False)),
        Variant(16, ExpertTile(64, 128, 4, 3)),
    ],
    4096: [
        *_variants(64, (128, 64, 4, 4, False), (128, 64, 4, 3, False), (256, 64, 8, 4, False), (128, 64, 8, 4, True)),
        *_variants(128, (128, 64, 8, 4, False), (128, 64, 8, 4, True), (256, 64, 8, 3, False)),
        Variant(64, None),
        Variant(64, ExpertTile(64, 128, 4, 3)),
    ],
}


def multiply(x: Tensor, weights: tuple[Tensor, ...], alignment: Any, top_k: int, variant: Variant) -> Tensor:
    blocks, scales, bias = weights
    if variant.tile is not None:
        return mxfp4_moe(x, blocks, scales, bias, *alignment, top_k, tile=variant.tile)
    return by_grouped_mm(x, unpack_mxfp4(blocks, scales, x.dtype), bias, *alignment, top_k)


def compile_one(task: tuple[Sizes, str, int, Variant]) -> None:
    """Into Triton's cache, without the GPU; what fails will fail again where it is recorded."""
    sizes, layer, num_tokens, variant = task
    inputs, outputs, top_k = sizes.layers()[layer]

    def meta(*shape: int, dtype: torch.dtype = sizes.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    blocks = meta(sizes.num_experts, outputs, inputs // 32, 16, dtype=torch.uint8)
    capacity = padded_capacity(num_tokens * sizes.top_k, sizes.num_experts, variant.block_size)
    alignment = [meta(n, dtype=torch.int32) for n in (capacity, capacity // variant.block_size, 1)]
    x = meta(num_tokens * sizes.top_k // top_k, inputs)
    try:
        with compiling_for():
            if variant.tile is None:
                unpack_mxfp4(blocks, blocks[..., 0], sizes.dtype)
            else:
                weights = (blocks, blocks[..., 0], meta(sizes.num_experts, outputs))
                multiply(x, weights, alignment, top_k, variant)
    except Exception as error:
        print(f"{layer} {variant.name}: {type(error).__name__} {error.__cause__ or error}"[:300], flush=True)


def compile_all(sizes: Sizes, asked: dict[int, list[Variant]]) -> float:
    """Seconds. In forks, so before this process asks for its GPU."""
    started = time.monotonic()
    tasks = {
        (layer, v): (sizes, layer, n, v) for n, variants in asked.items() for v in variants for layer in ("w13", "w2")
    }
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        pool.map(compile_one, tasks.values(), chunksize=1)
    return time.monotonic() - started


class Product:
    """One layer's product with its rows, and what it must come to."""

    def __init__(self, sizes: Sizes, layer: str, num_tokens: int, op: MXFP4MoE, device: torch.device) -> None:
        self.sizes, self.op = sizes, op
        self.inputs, self.outputs, self.top_k = sizes.layers()[layer]
        self.num_slots = num_tokens * sizes.top_k
        generator = torch.Generator(device).manual_seed(num_tokens)
        assert op.bias is not None
        self.weights = (op.weight_blocks.data, op.weight_scales.data, op.bias.data)
        expert_bytes = sum(w[0].numel() * w.element_size() for w in self.weights)
        few = min(self.num_slots, sizes.num_experts) * expert_bytes
        self.ids, self.rows = [], []
        for _ in range(min(8, num_sets(few))):
            drawn = torch.rand(num_tokens, sizes.num_experts, generator=generator, device=device)
            self.ids.append(drawn.topk(sizes.top_k).indices.int())
            shape = (self.num_slots // self.top_k, self.inputs)
            self.rows.append(torch.randn(shape, generator=generator, device=device).to(sizes.dtype))
        self.num_experts = sum(len(ids.unique()) for ids in self.ids) / len(self.ids)
        self.weight_bytes = round(self.num_experts * expert_bytes)
        self.num_flops = 2 * self.num_slots * self.inputs * self.outputs
        self.slots = torch.randperm(self.num_slots, generator=generator, device=device)[:CHECKED_SLOTS]
        self.wanted = torch.stack([self._row(slot) for slot in self.slots.tolist()])

    def _row(self, slot: int) -> Tensor:
        blocks, scales, bias = (w[int(self.ids[0].flatten()[slot])] for w in self.weights)
        return dequantize_mxfp4(blocks, scales, torch.float32) @ self.rows[0][slot // self.top_k].float() + bias.float()

    def measure(self, variant: Variant, timed: Callable[[list[Callable[[], object]]], float]) -> dict[str, Any]:
        align = MoEAlign(self.sizes.num_experts)
        calls: list[Callable[[], object]] = []
        for ids, rows in zip(self.ids, self.rows, strict=True):
            alignment = align(ids, variant.block_size)
            calls.append(partial(multiply, rows, self.weights, alignment, self.top_k, variant))
        found = calls[0]()
        assert isinstance(found, Tensor)
        difference = found[self.slots].float() - self.wanted
        error = float(difference.square().mean().sqrt() / self.wanted.square().mean().sqrt())
        del found
        us = timed(calls)
        rates = {"gb_per_s": self.weight_bytes / us / 1e3, "tflop_per_s": self.num_flops / us / 1e6}
        return {"us": us, **rates, "relative_rms": error}


def wall_microseconds(calls: list[Callable[[], object]]) -> float:
    started = time.perf_counter()
    for call in calls[:2]:
        call()
    return (time.perf_counter() - started) * 1e6 / len(calls[:2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seconds", type=float, default=45.0, help="after which no further variant is begun")
    arguments = parser.parse_args()
    started = time.monotonic()
    is_rehearsal, device = arguments.device == "cpu", torch.device(arguments.device)
    sizes = TINY if is_rehearsal else PUBLISHED
    asked = {n: VARIANTS[n] for n in arguments.tokens}
    report: dict[str, Any] = {"compile_seconds": None if is_rehearsal else compile_all(sizes, asked), "rows": []}
    if not is_rehearsal:
        report["environment"] = environment()
        print(f"compiled in {report['compile_seconds']:.1f} s on {report['environment']['gpu']}", flush=True)
    timed = wall_microseconds if is_rehearsal else partial(graph_microseconds, target_ms=15.0)
    with torch.inference_mode(), device:
        torch.manual_seed(0)
        layers = sizes.layers().items()
        ops = {name: MXFP4MoE(sizes.num_experts, k, n, True, top_k).to(sizes.dtype) for name, (k, n, top_k) in layers}
        for num_tokens, variants in asked.items():
            for layer, op in ops.items():
                product = Product(sizes, layer, min(num_tokens, 40) if is_rehearsal else num_tokens, op, device)
                rows = []
                for variant in variants:
                    row: dict[str, Any] = {"num_tokens": num_tokens, "layer": layer, "variant": variant.name}
                    try:
                        if time.monotonic() - started > arguments.seconds:
                            raise TimeoutError("not reached")
                        row |= product.measure(variant, timed)
                    except Exception as error:
                        row["error"] = f"{type(error).__name__}: {error}"[:300]
                    rows.append(row)
                report["rows"] += rows
                show(product, rows)
                if not is_rehearsal:
                    torch.cuda.empty_cache()
            report["seconds"] = time.monotonic() - started
            if arguments.out is not None:
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{report['seconds']:.0f} s")


def show(product: Product, rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    num_bytes = f"{product.weight_bytes / 1e6:.0f} MB of {product.num_experts:.0f} experts"
    print(
        f"{first['num_tokens']} tokens, {first['layer']}: {num_bytes}, {product.num_flops / 1e9:.0f} GFLOP", flush=True
    )
    best = min((row["us"] for row in rows if "us" in row), default=0.0)
    for row in rows:
        if "error" in row:
            print(f"    {row['variant']:48s} {row['error'].splitlines()[0][:120]}", flush=True)
            continue
        rates = f"{row['gb_per_s']:7.0f} GB/s {row['tflop_per_s']:6.1f} TFLOP/s"
        mark = "  best" if row["us"] == best else ""
        print(
            f"    {row['variant']:48s} {row['us']:9.2f} us {rates}  error {row['relative_rms']:.1e}{mark}", flush=True
        )


if __name__ == "__main__":
    main()
