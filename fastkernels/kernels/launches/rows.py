"""Norms and activations, a row at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.kernels.addcmul import addcmul
from fastkernels.kernels.launch import Launch, meta
from fastkernels.kernels.layer_norm import add_layer_norm, layer_norm, layer_norm_of_sum
from fastkernels.kernels.quickgelu import quickgelu
from fastkernels.kernels.rms_norm import add_rms_norm, rms_norm
from fastkernels.kernels.silu_and_mul import silu_and_mul
from fastkernels.kernels.swiglu_oai_and_mul import swiglu_oai_and_mul

_ROWS = (
    ("Llama-3.1-8B", 4096),
    ("Mamba-Codestral-7B gated", 8192),
    ("Qwen3-Next-80B", 2048),
    ("Qwen3-Next-80B heads", 256),
    ("GPT-OSS-120B", 2880),
    ("Qwen2-VL-7B", 3584),
    ("Pi0", 2048),
    ("Pi0 expert", 1024),
)
_FROM_ONE = ("Qwen3-Next", "Pi0")
"""Whose weights of norms are distances from one."""
_LAYER_NORM_ROWS = (
    ("DINOv3-7B", 4096),
    ("V-JEPA 2 ViT-g", 1408),
    ("V-JEPA 2 predictor", 384),
    ("Whisper-large-v3", 1280),
    ("BGE-M3", 1024),
    ("Pi0 vision", 1152),
    ("SDXL", 640),
    ("SDXL text", 768),
)
_GATED = (("Llama-3.1-8B", 14336), ("Qwen2-VL-7B", 18944), ("Qwen3-Next-80B", 512), ("DINOv3-7B", 8192))


def launches() -> Iterator[Launch]:
    for model, size in _ROWS:
        for rows in (64, 8192):
            for has_residual in (False, True):

                def norm(
                    dtype: torch.dtype,
                    rows: int = rows,
                    size: int = size,
                    more: bool = has_residual,
                    from_one: bool = model.startswith(_FROM_ONE),
                ) -> None:
                    x, weight = meta(rows, size, dtype=dtype), meta(size, dtype=dtype)
                    if more:
                        add_rms_norm(x, x, weight, 1e-5, from_one)
                    else:
                        rms_norm(x, weight, 1e-5, from_one)

                name = f"{'add_' if has_residual else ''}rms_norm of {rows} rows"
                yield Launch(model, name, norm, is_tested=model == "Llama-3.1-8B" and has_residual)
    for model, size in _LAYER_NORM_ROWS:

        def centred(dtype: torch.dtype, size: int = size) -> None:
            weight = meta(size, dtype=dtype)
            layer_norm(meta(1500, size, dtype=dtype), weight, weight, 1e-5)

        yield Launch(model, "layer_norm", centred, is_tested=model == "DINOv3-7B")

        def summed(dtype: torch.dtype, model: str = model, size: int = size) -> None:
            x, weight = meta(1500, size, dtype=dtype), meta(size, dtype=dtype)
            if model == "BGE-M3":
                layer_norm_of_sum(x, x, None, weight, weight, 1e-5)
            else:
                add_layer_norm(x, x, weight if model == "DINOv3-7B" else None, weight, weight, 1e-5)

        yield Launch(model, "layer_norm of a sum", summed, is_tested=model in ("DINOv3-7B", "BGE-M3"))
    for model, size, is_vector in (("DINOv3-7B", 4096, True), ("DLRMv2", 3456, False)):

        def scaled(dtype: torch.dtype, size: int = size, is_vector: bool = is_vector) -> None:
            x = meta(1500, size, dtype=dtype)
            addcmul(x, x, x[0] if is_vector else x)

        yield Launch(model, "addcmul", scaled, is_tested=is_vector)
    for model, size in _GATED:

        def gated(dtype: torch.dtype, size: int = size) -> None:
            silu_and_mul(meta(64, 2 * size, dtype=dtype))

        yield Launch(model, "silu_and_mul", gated, is_tested=model == "Llama-3.1-8B")
    yield Launch(
        "GPT-OSS-120B",
        "swiglu_oai_and_mul",
        lambda dtype: swiglu_oai_and_mul(meta(256, 5760, dtype=dtype), 1.702, 7.0),
        is_tested=True,
    )
    for model, size in (("Qwen2-VL-7B vision", 5120), ("SDXL text", 3072)):

        def quick(dtype: torch.dtype, size: int = size) -> None:
            quickgelu(meta(1024, size, dtype=dtype))

        yield Launch(model, "quickgelu", quick, is_tested=size == 5120)
