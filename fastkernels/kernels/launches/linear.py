"""Products of few rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.kernels.launch import BF16, FP16, Launch, meta
from fastkernels.kernels.skinny_linear import skinny_linear

_MATRICES = (
    ("Llama-3.1-8B qkv", 6144, 4096),
    ("Llama-3.1-8B o", 4096, 4096),
    ("Llama-3.1-8B gate_up", 28672, 4096),
    ("Llama-3.1-8B down", 4096, 14336),
    ("Llama-3.1-8B lm_head", 128256, 4096),
    ("Qwen2-VL-7B qkv", 4608, 3584),
    ("Qwen2-VL-7B down", 3584, 18944),
    ("Mamba-Codestral-7B in", 18560, 4096),
    ("Qwen3-Next-80B qkvz", 12288, 2048),
    ("GPT-OSS-120B qkv", 5120, 2880),
    ("Pi0 gate_up", 32768, 2048),
)


def launches() -> Iterator[Launch]:
    for model, outputs, inputs in _MATRICES:
        has_bias = model in ("Qwen2-VL-7B qkv", "GPT-OSS-120B qkv")
        for rows in (1, 8, 32):

            def multiply(
                dtype: torch.dtype, n: int = outputs, k: int = inputs, rows: int = rows, has_bias: bool = has_bias
            ) -> None:
                bias = meta(n, dtype=dtype) if has_bias else None
                skinny_linear(meta(rows, k, dtype=dtype), meta(n, k, dtype=dtype), bias)

            is_tested = model.endswith("8B o") and rows < 32
            yield Launch(model, f"skinny_linear of {rows} rows", multiply, (BF16, FP16), is_tested)
