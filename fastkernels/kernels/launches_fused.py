"""Calls of the kernels that stand for chains of small operations: gates of language models, and scenes of Gaussians."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.kernels.dfl_boxes import dfl_boxes
from fastkernels.kernels.fused_gdn_gating import fused_gdn_gating
from fastkernels.kernels.gaussian_projection import gaussian_projection
from fastkernels.kernels.gelu_and_mul import gelu_and_mul
from fastkernels.kernels.l2_norm import l2_norm
from fastkernels.kernels.launch import FP32, Launch, floats, ints, longs, meta
from fastkernels.kernels.rms_norm_gated import rms_norm_gated
from fastkernels.kernels.sigmoid_mul import sigmoid_mul
from fastkernels.kernels.spherical_harmonics import spherical_harmonics
from fastkernels.kernels.tile_intersection import tile_intersection
from fastkernels.kernels.vjepa2_rope import vjepa2_rope

_QWEN3_NEXT_QKVZ = 12288
"""Queries, keys, values and gates of a token."""


def fused_launches() -> Iterator[Launch]:
    yield from _gates()
    yield from _scenes()


def _gates() -> Iterator[Launch]:
    for rows in (8, 8192):

        def gate(dtype: torch.dtype, rows: int = rows) -> None:
            packed = meta(rows, _QWEN3_NEXT_QKVZ, dtype=dtype)
            heads, gates = (packed[:, place : place + 4096].unflatten(1, (32, 128)) for place in (0, 8192))
            rms_norm_gated(heads, gates, meta(128, dtype=dtype), 1e-6, 128, True)
            l2_norm(heads, 1e-6)
            a, b = meta(rows, 64, dtype=dtype).chunk(2, -1)
            fused_gdn_gating(floats(32), a, b, floats(32))
            sigmoid_mul(meta(rows, 16, 256, dtype=dtype), meta(rows, 32, 256, dtype=dtype)[:, 1::2])
            sigmoid_mul(meta(rows, 2048, dtype=dtype), meta(rows, 1, dtype=dtype))

        def norm(dtype: torch.dtype, rows: int = rows) -> None:
            x = meta(rows, 8192, dtype=dtype)
            rms_norm_gated(x, x, meta(8192, dtype=dtype), 1e-5, 1024, False)

        yield Launch("Qwen3-Next-80B", f"gates and norms of {rows} rows", gate, is_tested=rows == 8)
        yield Launch("Mamba-Codestral-7B", f"rms_norm_gated of {rows} rows", norm)

    def gelu(dtype: torch.dtype) -> None:
        for rows, size in ((2048, 5120), (8192, 2560)):
            gelu_and_mul(meta(rows, 2 * size, dtype=dtype), "none", True)

    def gelu_tanh(dtype: torch.dtype) -> None:
        for rows, size in ((816, 16384), (51, 4096)):
            gelu_and_mul(meta(rows, 2 * size, dtype=dtype), "tanh", False)

    yield Launch("SDXL", "gelu_and_mul", gelu, is_tested=True)
    yield Launch("Pi0", "gelu_and_mul", gelu_tanh)


def _scenes() -> Iterator[Launch]:
    for heads, tokens in ((16, 8192), (22, 4608)):

        def turn(dtype: torch.dtype, heads: int = heads, tokens: int = tokens) -> None:
            q, k, _ = meta(1, tokens, 3, heads, 64, dtype=dtype).unbind(2)
            vjepa2_rope(q, k, None, floats(10), 16)
            vjepa2_rope(q, k, longs(1, tokens), floats(10), 16)

        yield Launch("V-JEPA 2", f"rope of {heads} heads", turn, is_tested=heads == 16)

    def boxes(dtype: torch.dtype) -> None:
        for stride, side in ((8, 80), (16, 40), (32, 20)):
            dfl_boxes(meta(1, 64, side, side, dtype=dtype), 16, stride)

    yield Launch("YOLOv10-N", "dfl_boxes", boxes, is_tested=True)
    for num, width, height in ((1_000_000, 1600, 1060), (100_000, 1024, 1024)):

        def draw(dtype: torch.dtype, num: int = num, width: int = width, height: int = height) -> None:
            points, quats = meta(1, num, 3, dtype=dtype), meta(1, num, 4, dtype=dtype)
            views, cameras = meta(1, 4, 4, dtype=dtype), meta(1, 3, 3, dtype=dtype)
            gaussian_projection(points, quats, points, views, cameras, width, height, 0.3, 0.01, 1e10, 3.33, 1e-10)
            for degree in (0, 3):
                spherical_harmonics(points, meta(1, num, (degree + 1) ** 2, 3, dtype=dtype), degree)
            tile_intersection(meta(1, num, 2, dtype=dtype), ints(1, num, 2), points[..., 0], width, height, 16 * num)

        yield Launch("3D Gaussian splatting", f"{num} Gaussians projected and sorted", draw, (FP32,), num == 100_000)
