"""Scans, recurrences and causal convolutions of models with states."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastkernels.kernels.causal_conv1d import causal_conv1d, causal_conv1d_update
from fastkernels.kernels.chunk_gated_delta_rule import chunk_gated_delta_rule
from fastkernels.kernels.gdn_recurrence import gdn_recurrence
from fastkernels.kernels.launch import BF16, WITHOUT_FP16, Launch, floats, ints, meta
from fastkernels.kernels.mamba_chunk_scan import mamba_chunk_scan
from fastkernels.kernels.mamba_ssm import selective_state_update


def launches() -> Iterator[Launch]:
    where = (ints(4), meta(4, dtype=torch.bool))

    def mamba_parts(rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        xbc = meta(rows, 10240, dtype=dtype)
        x, b, c = xbc.split([8192, 1024, 1024], dim=-1)
        dt = meta(rows, 18560, dtype=dtype)[:, -128:]
        return x.unflatten(-1, (128, 64)), dt, b.unflatten(-1, (8, 128)), c.unflatten(-1, (8, 128))

    def scan_of(dtype: torch.dtype, rows: int, num_seqs: int, heads: int, groups: int) -> None:
        x, dt, b, c = mamba_parts(rows, dtype)
        x, dt, b, c = x[:, :heads], dt[:, :heads], b[:, :groups], c[:, :groups]
        head, states = meta(heads, dtype=dtype), floats(65, heads, 64, 128)
        places = (ints(num_seqs + 1), ints(num_seqs), meta(num_seqs, dtype=torch.bool))
        mamba_chunk_scan(x, dt, head, b, c, head, head, states, *places, (0.0, float("inf")))

    def scan(dtype: torch.dtype) -> None:
        """In the three ways that bf16 has: in sequence, in stages, and these for one of eight ranks and one prompt."""
        scan_of(dtype, 256, 4, 128, 8)
        scan_of(dtype, 4096, 4, 128, 8)
        scan_of(dtype, 4096, 1, 16, 1)

    def update(dtype: torch.dtype) -> None:
        x, dt, b, c = mamba_parts(4, dtype)
        head, states = meta(128, dtype=dtype), floats(65, 128, 64, 128)
        selective_state_update(states, x, dt, head, b, c, head, head, *where, (0.0, float("inf")))

    yield Launch("Mamba-Codestral-7B", "mamba_chunk_scan", scan, WITHOUT_FP16, is_tested=True)
    yield Launch("Mamba-Codestral-7B", "selective_state_update", update, WITHOUT_FP16, is_tested=True)

    def delta_parts(rows: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        q, k = meta(rows, 32, 128, dtype=dtype).chunk(2, dim=-2)
        v = meta(rows, 8192, dtype=dtype)[:, 4096:].unflatten(-1, (32, 128))
        return q, k, v, floats(rows, 32), floats(rows, 32), floats(65, 32, 128, 128)

    def rule(dtype: torch.dtype, rows: int = 4096) -> None:
        q, k, v, g, beta, states = delta_parts(rows, dtype)
        chunk_gated_delta_rule(q, k, v, g, beta, states, ints(5), *where)

    def short_rule(dtype: torch.dtype) -> None:
        rule(dtype, rows=128)

    def recurrence(dtype: torch.dtype) -> None:
        q, k, v, g, beta, states = delta_parts(4, dtype)
        gdn_recurrence(q, k, v, g, beta, states, *where)

    yield Launch("Qwen3-Next-80B", "chunk_gated_delta_rule", rule, WITHOUT_FP16, is_tested=True)
    yield Launch("Qwen3-Next-80B", "chunk_gated_delta_rule, short prompts", short_rule, (BF16,), is_tested=True)
    yield Launch("Qwen3-Next-80B", "gdn_recurrence", recurrence, WITHOUT_FP16, is_tested=True)
    for model, dim, row, has_bias in (
        ("Mamba-Codestral-7B", 10240, 18560, True),
        ("Qwen3-Next-80B", 8192, 12288, False),
    ):

        def convolve(dtype: torch.dtype, dim: int = dim, row: int = row, has_bias: bool = has_bias) -> None:
            weight, states = meta(dim, 4, dtype=dtype), meta(65, 3, dim, dtype=dtype)
            bias = meta(dim, dtype=dtype) if has_bias else None
            causal_conv1d(meta(4096, row, dtype=dtype)[:, :dim], weight, bias, states, ints(5), *where, 4096, True)
            causal_conv1d_update(meta(4, row, dtype=dtype)[:, :dim], states, weight, bias, *where, True)

        yield Launch(model, "causal_conv1d", convolve, WITHOUT_FP16, is_tested=has_bias)
