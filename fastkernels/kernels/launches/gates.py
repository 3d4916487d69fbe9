"""Gates of language and image models, each a chain of small operations in one kernel."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.kernels.fused_gdn_gating import fused_gdn_gating
from fastkernels.kernels.gelu_and_mul import gelu_and_mul
from fastkernels.kernels.l2_norm import l2_norm
from fastkernels.kernels.launch import Launch, floats, meta
from fastkernels.kernels.rms_norm_gated import rms_norm_gated
from fastkernels.kernels.sigmoid_mul import sigmoid_mul

_QWEN3_NEXT_QKVZ = 12288
"""Queries, keys, values and gates of a token."""


def launches() -> Iterator[Launch]:
    for rows in (8, 8192):

        def gate(dtype: torch.dtype, rows: int = rows) -> None:
            packed = meta(rows, _QWEN3_NEXT_QKVZ, dtype=dtype)
            heads, gates = (packed[:, place : place + 4096].unflatten(1, (32, 128)) for place in (0, 8192))
            rms_norm_gated(heads, gates, meta(128, dtype=dtype), 1e-6, 128, True)
            l2_norm(heads, 1e-6, True)
            a, b = meta(rows, 64, dtype=dtype).chunk(2, -1)
            fused_gdn_gating(floats(32), a, b, floats(32))
            sigmoid_mul(meta(rows, 16, 256, dtype=dtype), meta(rows, 32, 256, dtype=dtype)[:, 1::2])
            sigmoid_mul(meta(rows, 2048, dtype=dtype), meta(rows, 1, dtype=dtype))

        def norm(dtype: torch.dtype, rows: int = rows) -> None:
            x = meta(rows, 8192, dtype=dtype)
            rms_norm_gated(x, x, meta(8192, dtype=dtype), 1e-5, 1024, False)

        yield Launch("Qwen3-Next-80B", f"gates and norms of {rows} rows", gate, is_tested=rows == 8)
        yield Launch("Mamba-Codestral-7B", f"rms_norm_gated of {rows} rows", norm)

    def unit_rows(dtype: torch.dtype) -> None:
        l2_norm(meta(8192, 1024, dtype=dtype), 1e-12)

    yield Launch("BGE-M3", "l2_norm", unit_rows)

    def gelu(dtype: torch.dtype) -> None:
        for rows, size in ((2048, 5120), (8192, 2560)):
            gelu_and_mul(meta(rows, 2 * size, dtype=dtype), "none", True)

    def gelu_tanh(dtype: torch.dtype) -> None:
        for rows, size in ((816, 16384), (51, 4096)):
            gelu_and_mul(meta(rows, 2 * size, dtype=dtype), "tanh", False)

    yield Launch("SDXL", "gelu_and_mul", gelu, is_tested=True)
    yield Launch("Pi0", "gelu_and_mul", gelu_tanh)
