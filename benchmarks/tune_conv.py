"""Times YOLOv10-N's convolutions by tiles of their kernel beside cuDNN with the norm after it: the source of conv_tile.

    python benchmarks/tune_conv.py --out times.json
    TRITON_INTERPRET=1 python benchmarks/tune_conv.py --rehearse

Of every convolution of the model at 640 x 640 in fp16, channels last, at batch 1 and 32: first each by the tile that is
chosen, then the costliest by others until --seconds are over. Beside them is what they replace: a concatenation, cuDNN,
batch_norm2d with its SiLU, and an addition, where the layer has them. Every answer is held against that one's; `error`
is the norm of the difference, relative.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import kernel_timing as timing
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from fastkernels.kernels.backend import num_sms
from fastkernels.kernels.batch_norm2d import batch_norm2d
from fastkernels.kernels.conv_norm_act import ConvTile, Norm, conv_norm_act, conv_tile, packed_weight
from fastkernels.kernels.depthwise_conv_norm_act import depthwise_conv_norm_act

LAST = torch.channels_last
MOST_ERROR = 0.01
REPLACED, CHOSEN = "cuDNN and norm", "chosen"
DEPTHWISE_TILES = ((16, 4), (32, 4), (64, 4), (64, 8), (8, 2), (16, 2))


@dataclass(frozen=True)
class Case:
    """widths: channels of each input; num: of such layers in the model."""

    batch: int
    num: int
    widths: tuple[int, ...]
    side: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    is_depthwise: bool = False
    has_residual: bool = False
    has_silu: bool = True

    def __str__(self) -> str:
        names = {"depthwise": self.is_depthwise, "+ x": self.has_residual, "no SiLU": not self.has_silu}
        what = f"{self.batch} x {'+'.join(map(str, self.widths))} x {self.side}^2 to {self.outputs}, "
        return what + " ".join([f"{self.kernel} by {self.stride}", *(name for name, has in names.items() if has)])

    @property
    def num_pixels(self) -> int:
        return self.batch * (self.side // self.stride) ** 2

    @property
    def num_bytes(self) -> int:
        read = self.batch * self.side**2 * sum(self.widths)
        return 2 * (read + self.num_pixels * self.outputs * (1 + self.has_residual))


@dataclass
class Result:
    """microseconds: of one call, None where it failed; num: of such layers; tile: as the kernel was asked for it."""

    case: str
    num: int
    way: str
    tile: list[int]
    microseconds: float | None = None
    error: float | None = None
    problem: str = ""


def dense(num: int, widths: tuple[int, ...], side: int, outputs: int, kernel: int = 1, stride: int = 1) -> Case:
    return Case(1, num, widths, side, outputs, kernel, stride)


def depthwise(num: int, channels: int, side: int, kernel: int = 3, stride: int = 1, has_silu: bool = True) -> Case:
    return Case(1, num, (channels,), side, channels, kernel, stride, is_depthwise=True, has_silu=has_silu)


CASES = [
    dense(1, (3,), 640, 16, 3, 2),
    dense(1, (16,), 320, 32, 3, 2),
    dense(1, (32,), 160, 32),
    dense(1, (16,), 160, 16, 3),
    replace(dense(1, (16,), 160, 16, 3), has_residual=True),
    dense(1, (32, 16), 160, 32),
    dense(1, (32,), 160, 64, 3, 2),
    dense(1, (64,), 80, 64),
    dense(4, (32,), 80, 32, 3),
    replace(dense(2, (32,), 80, 32, 3), has_residual=True),
    dense(1, (64, 32, 32), 80, 64),
    dense(1, (128, 64), 80, 64),
    dense(1, (64, 32), 80, 64),
    dense(1, (64,), 80, 128),
    dense(1, (64,), 80, 64, 3, 2),
    dense(2, (64,), 80, 64, 3),
    dense(1, (64,), 80, 80),
    dense(1, (80,), 80, 80),
    dense(2, (128,), 40, 128),
    dense(7, (64,), 40, 64, 3),
    replace(dense(2, (64,), 40, 64, 3), has_residual=True),
    dense(1, (128, 64, 64), 40, 128),
    dense(1, (256, 128), 40, 128),
    dense(3, (128, 64), 40, 128),
    dense(1, (128,), 40, 256),
    dense(1, (128,), 40, 64, 3),
    dense(1, (128,), 40, 80),
    dense(1, (80,), 40, 80),
    dense(2, (256,), 20, 256),
    dense(1, (128,), 20, 128, 3),
    replace(dense(1, (128,), 20, 128, 3), has_residual=True),
    dense(3, (256, 128), 20, 256),
    dense(3, (256,), 20, 128),
    dense(1, (128,) * 4, 20, 256),
    dense(3, (128,), 20, 256),
    dense(1, (128, 128), 20, 256),
    dense(1, (256,), 20, 64, 3),
    dense(1, (64,), 20, 64, 3),
    dense(1, (256,), 20, 80),
    dense(1, (80,), 20, 80),
    depthwise(1, 128, 80, stride=2, has_silu=False),
    depthwise(1, 256, 40, stride=2, has_silu=False),
    depthwise(1, 128, 40, stride=2, has_silu=False),
    depthwise(1, 64, 80),
    depthwise(1, 80, 80),
    depthwise(1, 128, 40),
    depthwise(1, 80, 40),
    depthwise(1, 256, 20),
    depthwise(3, 128, 20),
    depthwise(1, 80, 20),
    replace(depthwise(1, 256, 20, 7), has_residual=True),
]
"""Layers by what they read and write; a residual is as good as another, whichever side of the activation it is on."""


class Given:
    """One case's arguments, drawn on a device."""

    def __init__(self, case: Case, device: str, seed: int = 0) -> None:
        make = torch.Generator(device).manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=make, device=device, dtype=torch.float16)

        self.case, images = case, (case.side, case.side)
        self.parts = [randn(case.batch, width, *images).contiguous(memory_format=LAST) for width in case.widths]
        if case.widths == (3,):
            self.parts = [self.parts[0].contiguous()]  # a picture comes in planes
        depth = 1 if case.is_depthwise else sum(case.widths)
        weight = randn(case.outputs, depth, case.kernel, case.kernel) / (depth * case.kernel**2) ** 0.5
        self.weight = packed_weight(weight, case.is_depthwise)
        self.library_weight = weight.contiguous(memory_format=LAST)
        weight, bias, mean = (randn(case.outputs) for _ in range(3))
        self.norm = Norm(weight, bias, mean, randn(case.outputs).abs() + 0.5, 1e-3, case.has_silu)
        out = case.side // case.stride
        shape = (case.batch, case.outputs, out, out)
        self.residual = randn(*shape).contiguous(memory_format=LAST) if case.has_residual else None

    def replaced(self) -> Tensor:
        case, norm = self.case, self.norm
        x = torch.cat(self.parts, 1) if len(self.parts) > 1 else self.parts[0]
        groups = case.outputs if case.is_depthwise else 1
        y = conv2d(x, self.library_weight, None, case.stride, case.kernel // 2, 1, groups)
        y = batch_norm2d(y, norm.weight, norm.bias, norm.mean, norm.var, norm.eps, norm.has_silu)
        return y if self.residual is None else self.residual + y

    def ours(self, tile: tuple[int, ...] | None) -> Tensor:
        if self.case.is_depthwise:
            chosen = None if tile is None else (tile[0], tile[1])
            return depthwise_conv_norm_act(
                self.parts[0], self.weight, self.norm, self.case.stride, self.residual, tile=chosen
            )
        chosen_tile = None if tile is None else ConvTile(*tile)
        return conv_norm_act(self.parts, self.weight, self.norm, self.case.stride, self.residual, tile=chosen_tile)


def other_tiles(case: Case, sms: int) -> Iterator[tuple[int, ...]]:
    """Those around the one that is chosen, it and others among them, some twice."""
    if case.is_depthwise:
        yield from DEPTHWISE_TILES
        return
    if case.widths == (3,):
        return
    chosen = conv_tile(case.num_pixels, case.outputs, case.widths, case.kernel, sms)
    widest = chosen.block_n if case.outputs <= chosen.block_n else 128
    for block_m, block_n, warps in ((128, 128, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4), (64, 32, 4), (32, 32, 4),
                                    (32, 64, 4), (128, 32, 4), (16, 64, 4)):  # fmt: skip
        tile = chosen._replace(block_m=block_m, block_n=min(block_n, widest), num_warps=warps)
        yield tile
    for num_stages in (2, 3, 4):
        yield chosen._replace(num_stages=num_stages)
    if chosen.taps == 1 and chosen.block_c > 16:
        yield chosen._replace(block_c=chosen.block_c // 2)
    if chosen.taps == 1 and chosen.block_c < min(128, max(case.widths)):
        yield chosen._replace(block_c=chosen.block_c * 2)


def measured(calls: list[Callable[[], object]], is_rehearsal: bool) -> float:
    """Microseconds of one call."""
    if not is_rehearsal:
        return timing.graph_microseconds(calls, 10.0)
    started = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - started) * 1e6 / len(calls)


def tried(given: list[Given], way: str, tile: tuple[int, ...] | None, wanted: Tensor, is_rehearsal: bool) -> Result:
    case = given[0].case
    result = Result(str(case), case.num, way, list(tile or ()))
    try:
        one = (lambda g: g.replaced()) if way == REPLACED else (lambda g: g.ours(tile))
        got = one(given[0]).float()
        result.error = float((got - wanted).norm() / wanted.norm())
        result.microseconds = measured([lambda g=g: one(g) for g in given], is_rehearsal)  # type: ignore[misc]
    except Exception as error:
        result.problem = f"{type(error).__name__} {str(error)[:120]}"
        if not is_rehearsal:
            torch.cuda.synchronize()
    return result


def run(cases: list[Case], is_rehearsal: bool, deadline: float, most_others: int) -> list[Result]:
    device = "cpu" if is_rehearsal else "cuda"
    sms = num_sms(torch.device(device))
    results: list[Result] = []

    def try_case(case: Case, ways: list[tuple[str, tuple[int, ...] | None]]) -> None:
        sets = 1 if is_rehearsal else timing.num_sets(case.num_bytes)
        given = [Given(case, device, seed) for seed in range(sets)]
        wanted = given[0].replaced().float()
        for way, tile in ways:
            if time.monotonic() > deadline:
                return
            results.append(tried(given, way, tile, wanted, is_rehearsal))
            print(results[-1], flush=True)

    for case in cases:
        try_case(case, [(REPLACED, None), (CHOSEN, None)])
    costs = {r.case: r.num * (r.microseconds or 0.0) for r in results if r.way == CHOSEN}
    for case in sorted(cases, key=lambda case: -costs.get(str(case), 0.0)):
        try_case(case, [("other", tile) for tile in list(dict.fromkeys(other_tiles(case, sms)))[:most_others]])
    return results


_WAYS = {"cuDNN": (REPLACED,), "ours": (CHOSEN,), "best": (CHOSEN, "other")}


def _time_of(result: Result) -> float:
    return result.microseconds or 0.0


def print_table(results: list[Result]) -> None:
    totals: dict[tuple[str, str], float] = {}
    print(f"{'layers':>6s} {'cuDNN':>8s} {'ours':>8s} {'best':>8s}  microseconds each, and the best tile")
    for case in dict.fromkeys(result.case for result in results):
        rows = [r for r in results if r.case == case and r.microseconds is not None]
        best_of = {
            way: min((r for r in rows if r.way in ways), key=_time_of, default=None) for way, ways in _WAYS.items()
        }
        shown, best = list(best_of.values()), best_of["best"]
        told = " ".join(f"{r.microseconds:8.1f}" if r else f"{'-':>8s}" for r in shown)
        num = rows[0].num if rows else 0
        print(f"{num:6d} {told}  {case} {best.tile if best and best.way != CHOSEN else ''}".rstrip())
        for name, row in best_of.items():
            key = (case.split(" x ")[0], name)
            totals[key] = totals.get(key, 0.0) + (row.num * (row.microseconds or 0.0) if row else 0.0)
    for (batch, name), total in totals.items():
        print(f"batch {batch}, all layers, {name}: {total:.0f} us")
    for r in results:
        if r.problem or (r.error is not None and not r.error <= MOST_ERROR):
            print(f"WRONG: {r}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a .json file")
    parser.add_argument("--seconds", type=float, default=195.0)
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    cases, most_others = [replace(case, batch=batch) for batch in (32, 1) for case in CASES], 99
    if arguments.rehearse:
        few = [case for case in CASES if prod(case.widths) * case.outputs <= 2**15][::3]
        cases, most_others = [replace(case, side=min(case.side, 4)) for case in few], 2
    results = run(cases, arguments.rehearse, time.monotonic() + arguments.seconds, most_others)
    if arguments.out:
        told: dict[str, Any] = {} if arguments.rehearse else timing.environment()
        record = {"environment": told, "results": [asdict(result) for result in results]}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print_table(results)
    return 1 if any(r.problem or r.error is None or not r.error <= MOST_ERROR for r in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
