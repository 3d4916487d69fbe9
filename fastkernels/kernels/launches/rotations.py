"""Rotary embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from fastkernels.kernels.dinov3_rope import dinov3_rope
from fastkernels.kernels.launch import Launch, floats, longs, meta
from fastkernels.kernels.rotary_emb import rotary_embedding
from fastkernels.kernels.vjepa2_rope import vjepa2_rope


class _Rotated(NamedTuple):
    model: str
    num_heads: int
    num_kv_heads: int
    head_size: int
    rotary_dim: int
    sections: tuple[int, ...] = ()
    table_width: int | None = None


_ROTATED = (
    _Rotated("Llama-3.1-8B", 32, 8, 128, 128),
    _Rotated("Qwen3-Next-80B", 16, 2, 256, 64),
    _Rotated("GPT-OSS-120B", 64, 8, 64, 64),
    _Rotated("Pi0", 8, 1, 256, 256),
    _Rotated("Qwen2-VL-7B", 28, 4, 128, 128, (16, 24, 24)),
    _Rotated("Qwen2-VL-7B vision", 16, 16, 80, 80, (20, 20), 40),
)


def launches() -> Iterator[Launch]:
    for one in _ROTATED:
        for tokens in (64, 4096):

            def turn(dtype: torch.dtype, one: _Rotated = one, tokens: int = tokens) -> None:
                size = one.head_size
                qkv = meta(tokens, one.num_heads + 2 * one.num_kv_heads, size, dtype=dtype)
                query, key = qkv[:, : one.num_heads], qkv[:, one.num_heads : one.num_heads + one.num_kv_heads]
                positions = longs(len(one.sections), tokens) if one.sections else longs(tokens)
                table = floats(8192, one.table_width or one.rotary_dim)
                rotary_embedding(positions, query, key, table, size, one.rotary_dim, True, one.sections)

            is_tested = one.model == "Llama-3.1-8B" and tokens == 64
            yield Launch(one.model, f"rotary_embedding of {tokens} tokens", turn, is_tested=is_tested)

    def turn_patches(dtype: torch.dtype) -> None:
        qkv, angles = meta(8, 201, 3, 32, 128, dtype=dtype), floats(196, 64)
        dinov3_rope(qkv[:, :, 0], qkv[:, :, 1], angles, angles)

    yield Launch("DINOv3-7B", "dinov3_rope", turn_patches, is_tested=True)
    for heads, tokens in ((16, 8192), (22, 4608)):

        def turn_video(dtype: torch.dtype, heads: int = heads, tokens: int = tokens) -> None:
            q, k, _ = meta(1, tokens, 3, heads, 64, dtype=dtype).unbind(2)
            vjepa2_rope(q, k, None, floats(10), 16)
            vjepa2_rope(q, k, longs(1, tokens), floats(10), 16)

        yield Launch("V-JEPA 2", f"rope of {heads} heads", turn_video, is_tested=heads == 16)
