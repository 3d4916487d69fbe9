"""3D Gaussian splatting: each op of a rendering, then all of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastkernels.pipelines.gaussian_splatting import look_at
from fastkernels.pipelines.splat_scene import generate_scene
from fastkernels.tasks.baseline.L1.gaussian_projection import GaussianProjection
from fastkernels.tasks.baseline.L1.rasterize_gaussians import RasterizeGaussians
from fastkernels.tasks.baseline.L1.spherical_harmonics import SphericalHarmonics
from fastkernels.tasks.baseline.L1.tile_intersection import TileIntersection, num_tiles
from fastkernels.tasks.baseline.L2.gaussian_renderer import GaussianRenderer
from op_groups.bench import Bench, Row

FP32 = torch.float32


def rows(bench: Bench) -> Iterator[Row]:
    side = bench.size(1024, 48)
    for batch in (1, bench.size(8, 2)):
        yield from _scene(bench, _orbit(bench, batch, bench.size(100_000, 60), side), side, side, batch == 1)
    if bench.is_rehearsal:
        return
    for num, width, height in ((1_000_000, 1600, 1060), (100_000, 640, 480)):
        sizes = {"batch": 1, "num_gaussians": num, "width": width, "height": height}
        given = GaussianProjection().coupled_inputs(sizes, torch.Generator().manual_seed(1))
        given["scales"] *= 0.02
        scene = {"opacities": torch.rand(1, num), "coeffs": torch.randn(1, num, 16, 3), **given}
        yield from _scene(bench, {name: x.to(bench.device) for name, x in scene.items()}, width, height)


def _orbit(bench: Bench, batch: int, num: int, side: int) -> dict[str, Tensor]:
    """The published load: a generated scene of 100,000 Gaussians from `batch` places about it."""
    scene = {name: x.expand(batch, *x.shape) for name, x in generate_scene(num, 3, 0).items()}
    angles = torch.arange(batch) * 2 * torch.pi / batch
    eyes = torch.stack([3 * angles.sin(), 0 * angles, -3 * angles.cos()], dim=1)
    scene["viewmats"] = torch.stack([look_at(eye, torch.zeros(3), torch.tensor([0.0, -1.0, 0.0])) for eye in eyes])
    focal = side / 2 * 3**0.5  # 60 degrees across
    scene["Ks"] = torch.tensor([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]]).expand(batch, 3, 3)
    return {name: x.to(bench.device).contiguous() for name, x in scene.items()}


def _scene(
    bench: Bench, scene: dict[str, Tensor], width: int, height: int, has_definition: bool = False
) -> Iterator[Row]:
    """has_definition: of the blending, which goes tile by tile."""
    batch, num, _ = scene["means"].shape
    model, shape = "3DGS", f"{batch} x {num} at {width} x {height}"
    config = bench.config("gsplat-3dgs", "tiny-gaussian_splatting")
    given = [scene[name] for name in ("means", "quats", "scales", "viewmats", "Ks")]
    projection = bench.build(GaussianProjection, {}, FP32)
    yield bench.row(model, shape, projection, lambda: (*given, width, height), init={}, dtype=FP32)
    degree = round(scene["coeffs"].shape[2] ** 0.5) - 1
    yield bench.row(
        model,
        shape,
        bench.build(SphericalHarmonics, {"degree": degree}, FP32),
        lambda: (bench.randn(batch, num, 3, dtype=FP32), scene["coeffs"].clone()),
        init={"degree": degree},
        dtype=FP32,
    )
    radii, means2d, depths, conics = projection(*given, width, height)
    columns, lines = num_tiles(width, height)
    pairs = (means2d, radii, depths, width, height, config.capacity(batch, num, columns * lines))
    intersection = bench.build(TileIntersection, {}, FP32)
    yield bench.row(model, f"{shape}, {pairs[-1]} slots", intersection, lambda: pairs, init={}, dtype=FP32)
    ids, offsets, _ = intersection(*pairs)
    colors, background = torch.rand(batch, num, 3, device=bench.device), torch.zeros(batch, 3, device=bench.device)
    blended = (means2d, conics, colors, scene["opacities"], ids, offsets, background, width, height)
    yield bench.row(
        model,
        f"{shape}, {int(offsets[-1])} pairs",
        bench.build(RasterizeGaussians, {}, FP32),
        lambda: blended,
        init={},
        dtype=FP32,
        has_definition=has_definition,
    )
    whole = (*given[:3], scene["opacities"], scene["coeffs"], *given[3:], background, width, height)
    renderer = bench.build(GaussianRenderer, {"config": config}, FP32)
    yield bench.row(model, shape, renderer, lambda: whole, dtype=FP32, has_definition=False)
