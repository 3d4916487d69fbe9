"""Times ops' kernels against the chains of torch calls that define them: `python benchmarks/op_kernels.py --out FILE`.

Sizes are those of the published models; kernel_timing.py says how it is timed, and shares are of a device copy
measured in the same process. Chains that read a number on the host are timed without a graph. `--only WORD` takes the
rows whose kernel holds it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from kernel_timing import (
    Call,
    Row,
    copy_row,
    environment,
    event_microseconds,
    graph_microseconds,
    num_sets,
    print_table,
    randn,
)
from torch import Tensor

from fastkernels.kernels.flash_attn_prefill import launch_tiles
from fastkernels.kernels.flash_attn_varlen import flash_attn_varlen
from fastkernels.op import Op
from fastkernels.pipelines.gaussian_splatting import look_at
from fastkernels.pipelines.splat_scene import generate_scene
from fastkernels.tasks.baseline.L1.dfl_boxes import DFLBoxes
from fastkernels.tasks.baseline.L1.fused_gdn_gating import FusedGDNGating
from fastkernels.tasks.baseline.L1.gaussian_projection import GaussianProjection
from fastkernels.tasks.baseline.L1.gelu_and_mul import GeluAndMul
from fastkernels.tasks.baseline.L1.l2_norm import L2Norm
from fastkernels.tasks.baseline.L1.rasterize_gaussians import RasterizeGaussians
from fastkernels.tasks.baseline.L1.rms_norm_gated import RMSNormGated
from fastkernels.tasks.baseline.L1.sigmoid_mul import SigmoidMul
from fastkernels.tasks.baseline.L1.spherical_harmonics import SphericalHarmonics
from fastkernels.tasks.baseline.L1.tile_intersection import TileIntersection, num_tiles
from fastkernels.tasks.baseline.L1.vjepa2_rope import VJEPA2Rope
from fastkernels.tasks.baseline.L2.gaussian_renderer import GaussianRenderer
from fastkernels.tasks.configs.gaussian_splatting import GaussianSplattingConfig

PAGE = 16
HEADS, KV_HEADS, HEAD_SIZE = 64, 8, 64
"""Of GPT-OSS 120B."""

QKVZ = 12288
"""Of Qwen3-Next: queries, keys, values and gates of a token."""


def timed(row: Row, paths: dict[str, list[Call]]) -> Row:
    for name, calls in paths.items():
        try:
            row.microseconds[name] = graph_microseconds(calls)
        except Exception:
            torch.cuda.synchronize()
            time_without_graph(row, name, calls[:4])
    torch.cuda.empty_cache()
    return row


def time_without_graph(row: Row, name: str, calls: list[Call]) -> None:
    """A path that fails here, too, has no time."""
    try:
        row.microseconds[name if name == "ours" else f"{name}, no graph"] = event_microseconds(calls)
    except Exception as error:
        torch.cuda.synchronize()
        print(f"{row.kernel} {row.shape} {name}: {type(error).__name__} {str(error)[:150]}")


def op_row(shape: str, op: Op, make: Any) -> Row:
    """make: a set of arguments anew."""
    op.cuda()
    first = make()
    outputs = op(*first)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    given = {str(i): x for i, x in enumerate(first)}
    num_bytes = op.cost(given, {str(i): y for i, y in enumerate(outputs)}).num_bytes
    sets = [first, *(make() for _ in range(num_sets(num_bytes) - 1))]
    paths: dict[str, list[Call]] = {
        "ours": [lambda s=s: op(*s) for s in sets],
        "chain": [lambda s=s: op.reference(*s) for s in sets],
    }
    return timed(Row(type(op).__name__, shape, num_bytes), paths)


def gates() -> Iterator[Row]:
    for n in (1, 16, 128, 8192):
        yield op_row(
            f"{n} x 32 x 128",
            RMSNormGated(128, 1e-6, norm_before_gate=True),
            lambda n=n: (randn(n, 32, 128), randn(n, QKVZ)[:, 8192:].unflatten(1, (32, 128))),
        )
        yield op_row(
            f"{n} x 8192 by 1024", RMSNormGated(8192, 1e-5, 1024), lambda n=n: (randn(n, 8192), randn(n, 8192))
        )
        yield op_row(f"{n} x 32 x 128", L2Norm(1e-6), lambda n=n: (randn(n, QKVZ)[:, :4096].unflatten(1, (32, 128)),))
        yield op_row(f"{n} x 16 x 256", SigmoidMul(256), lambda n=n: (randn(n, 16, 256), randn(n, 32, 256)[:, 1::2]))
        yield op_row(f"{n} x 2048, one a row", SigmoidMul(2048, 1), lambda n=n: (randn(n, 2048), randn(n, 1)))
        yield op_row(
            f"{n} x 32",
            FusedGDNGating(),
            lambda n=n: (
                randn(32, dtype=torch.float32),
                *randn(n, 64).chunk(2, -1),
                randn(32, dtype=torch.float32),
            ),
        )
    for n, d, approximate in ((2048, 5120, "none"), (8192, 2560, "none"), (816, 16384, "tanh"), (51, 4096, "tanh")):
        yield op_row(f"{n} x 2 x {d}", GeluAndMul(approximate), lambda n=n, d=d: (randn(n, 2 * d),))


def vision() -> Iterator[Row]:
    for heads, tokens in ((16, 8192), (22, 4608)):
        yield op_row(
            f"{tokens} x {heads} x 64",
            VJEPA2Rope(64, 16),
            lambda heads=heads, tokens=tokens: randn(1, tokens, 3, heads, 64).unbind(2)[:2],
        )
    for stride, side in ((8, 80), (16, 40), (32, 20)):
        yield op_row(
            f"{side} x {side}",
            DFLBoxes(16, stride),
            lambda side=side: (
                randn(1, 8400, 64, dtype=torch.float16)[:, : side**2].transpose(1, 2).unflatten(2, (side, side)),
            ),
        )


def scenes() -> Iterator[Row]:
    for num, width, height in ((1_000_000, 1600, 1060), (100_000, 640, 480)):
        sizes = {"batch": 1, "num_gaussians": num, "width": width, "height": height}
        given = GaussianProjection().coupled_inputs(sizes, torch.Generator().manual_seed(1))
        given["scales"] *= 0.02
        scene = {"opacities": torch.rand(1, num), "coeffs": torch.randn(1, num, 16, 3), **given}
        yield from scene_rows({name: x.cuda() for name, x in scene.items()}, width, height)
    for batch in (1, 8):
        yield from scene_rows(orbit(batch), 1024, 1024)


def orbit(batch: int) -> dict[str, Tensor]:
    """The published load: a generated scene of 100,000 Gaussians from `batch` places about it."""
    scene = {name: x.expand(batch, *x.shape) for name, x in generate_scene(100_000, 3, 0).items()}
    angles = torch.arange(batch) * 2 * torch.pi / batch
    eyes = torch.stack([3 * angles.sin(), 0 * angles, -3 * angles.cos()], dim=1)
    scene["viewmats"] = torch.stack([look_at(eye, torch.zeros(3), torch.tensor([0.0, -1.0, 0.0])) for eye in eyes])
    focal = 512 * 3**0.5  # 60 degrees across
    scene["Ks"] = torch.tensor([[focal, 0, 512], [0, focal, 512], [0, 0, 1]]).expand(batch, 3, 3)
    return {name: x.cuda().contiguous() for name, x in scene.items()}


def scene_rows(scene: dict[str, Tensor], width: int, height: int) -> Iterator[Row]:
    """Each op of a rendering, then all of it."""
    batch, num, _ = scene["means"].shape
    shape = f"{batch} x {num} at {width} x {height}"
    given = [scene[name] for name in ("means", "quats", "scales", "viewmats", "Ks")]
    projection, harmonics = GaussianProjection(), SphericalHarmonics(3)
    yield op_row(shape, projection, lambda: (*given, width, height))
    yield op_row(shape, harmonics, lambda: (randn(batch, num, 3, dtype=torch.float32), scene["coeffs"].clone()))
    radii, means2d, depths, conics = projection(*given, width, height)
    columns, rows = num_tiles(width, height)
    config = GaussianSplattingConfig()
    pairs = (means2d, radii, depths, width, height, config.capacity(batch, num, columns * rows))
    yield op_row(f"{shape}, {pairs[-1]} slots", TileIntersection(), lambda: pairs)
    ids, offsets, _ = TileIntersection().cuda()(*pairs)
    colors, opacities = torch.rand(batch, num, 3, device="cuda"), scene["opacities"]
    background = torch.zeros(batch, 3, device="cuda")
    blended = (means2d, conics, colors, opacities, ids, offsets, background, width, height)
    rasterizer, renderer = RasterizeGaussians(), GaussianRenderer(config)
    yield timed(
        Row("RasterizeGaussians", f"{shape}, {int(offsets[-1])} pairs", 44 * int(offsets[-1])),
        {"ours": [lambda: rasterizer(*blended)] * 3},
    )
    whole = (*given[:3], opacities, scene["coeffs"], *given[3:], background, width, height)
    num_bytes = sum(x.nbytes for x in scene.values()) + 16 * batch * width * height
    yield timed(Row("GaussianRenderer", shape, num_bytes), {"ours": [lambda: renderer(*whole)] * 3})


def decode_attention() -> Iterator[Row]:
    for num, length in ((1, 8000), (8, 8000), (64, 2000), (256, 1000)):
        for window in (128, None):
            yield decode_row(num, length, window)


def decode_row(num: int, length: int, window: int | None) -> Row:
    """A layer of GPT-OSS in a decode step; tiles: the kernel of prompts, which also takes single tokens."""
    num_pages = -(-length // PAGE)
    table = torch.randperm(num * num_pages, device="cuda").view(num, num_pages).int()
    lens, starts = torch.full((num,), length, device="cuda").int(), torch.arange(num + 1, device="cuda").int()
    query, sinks, scale = randn(num, HEADS, HEAD_SIZE), randn(HEADS), HEAD_SIZE**-0.5
    out = torch.empty_like(query)
    held = 4 * num * length * KV_HEADS * HEAD_SIZE
    caches = [randn(2, num * num_pages, PAGE, KV_HEADS, HEAD_SIZE) for _ in range(min(8, num_sets(held)))]

    def ours(cache: Tensor) -> Tensor:
        given = (query, *cache, starts, lens, table, 1, 131072)
        return flash_attn_varlen(*given, scale, num, window, sinks)

    def tiles(cache: Tensor) -> None:
        launch_tiles(query, *cache, starts, lens, table, 1, 1, scale, out, window=window, sinks=sinks)

    num_bytes = 2 * query.nbytes + 4 * num * min(length, window or length) * KV_HEADS * HEAD_SIZE
    paths: dict[str, list[Call]] = {
        name: [lambda c=c, f=f: f(c) for c in caches] for name, f in (("ours", ours), ("tiles", tiles))
    }
    return timed(Row("decode with sinks", f"{num} x {length}, window {window}", num_bytes), paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="of gates, vision, scenes, decode: one")
    arguments = parser.parse_args()
    groups = {"gates": gates, "vision": vision, "scenes": scenes, "decode": decode_attention}
    rows = [copy_row()]
    try:
        with torch.inference_mode():
            for name, group in groups.items():
                if arguments.only in name:
                    rows += group()  # one behind another: those before an error are kept
    finally:
        if arguments.out is not None:
            write(rows, arguments.out)
    print_table(rows)


def write(rows: list[Row], out: Path) -> None:
    report = {"environment": environment(), "rows": [asdict(row) for row in rows]}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
