"""Gaussians: projection, colours, tiles."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.kernels.gaussian_projection import gaussian_projection
from fastkernels.kernels.launch import FP32, Launch, floats, ints, longs, meta
from fastkernels.kernels.rasterize_gaussians import rasterize_gaussians
from fastkernels.kernels.spherical_harmonics import spherical_harmonics
from fastkernels.kernels.tile_intersection import tile_intersection


def launches() -> Iterator[Launch]:
    for num, width, height in ((1_000_000, 1600, 1060), (100_000, 1024, 1024)):

        def draw(dtype: torch.dtype, num: int = num, width: int = width, height: int = height) -> None:
            points, quats = meta(1, num, 3, dtype=dtype), meta(1, num, 4, dtype=dtype)
            views, cameras = meta(1, 4, 4, dtype=dtype), meta(1, 3, 3, dtype=dtype)
            gaussian_projection(points, quats, points, views, cameras, width, height, 0.3, 0.01, 1e10, 3.33, 1e-10)
            for degree in (0, 3):
                spherical_harmonics(points, meta(1, num, (degree + 1) ** 2, 3, dtype=dtype), degree)
            tile_intersection(meta(1, num, 2, dtype=dtype), ints(1, num, 2), points[..., 0], width, height, 16 * num)

        yield Launch("3D Gaussian splatting", f"{num} Gaussians projected and sorted", draw, (FP32,), num == 100_000)

    def render(dtype: torch.dtype) -> None:
        number, tiles = 100_000, 80 * 45
        means, triples, ones = floats(1, number, 2), floats(1, number, 3), floats(1, number)
        ids, offsets = longs(16 * number), ints(tiles + 1)
        rasterize_gaussians(means, triples, triples, ones, ids, offsets, floats(1, 3), 1280, 720)

    yield Launch("3DGS", "rasterize_gaussians", render, (FP32,), is_tested=True)
