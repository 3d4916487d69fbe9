"""Attention over pages and over packed sequences, and the writing of pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from fastkernels.kernels.backend import step_graph
from fastkernels.kernels.dense_attention import dense_attention
from fastkernels.kernels.flash_attn_decode import flash_attn_decode
from fastkernels.kernels.flash_attn_prefill import flash_attn_prefill
from fastkernels.kernels.flash_attn_varlen import flash_attn_varlen
from fastkernels.kernels.launch import BF16, FP16, Launch, ints, longs, meta
from fastkernels.kernels.store_kvcache import store_kvcache

PAGE_SIZE = 16


class _Heads(NamedTuple):
    model: str
    num_heads: int
    num_kv_heads: int
    head_size: int
    window: int | None = None
    has_sinks: bool = False


_LLAMA = _Heads("Llama-3.1-8B", 32, 8, 128)
_CACHED = (
    _LLAMA,
    _Heads("Qwen2-VL-7B", 28, 4, 128),
    _Heads("Qwen3-Next-80B", 16, 2, 256),
    _Heads("Whisper-large-v3", 20, 20, 64),
    _Heads("heads of 96", 32, 8, 96),
)
_WINDOWED = (
    _Heads("GPT-OSS-120B window", 64, 8, 64, 128, True),
    _Heads("GPT-OSS-120B full", 64, 8, 64, None, True),
)
_PI0 = _Heads("Pi0", 8, 1, 256)
_BIDIRECTIONAL = (
    _Heads("Whisper-large-v3 encoder", 20, 20, 64),
    _Heads("BGE-M3", 16, 16, 64),
    _Heads("Qwen2-VL-7B vision", 16, 16, 80),
    _Heads("Pi0 vision", 16, 16, 72),
)


def _packed(one: _Heads, num_tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    qkv = meta(num_tokens, one.num_heads + 2 * one.num_kv_heads, one.head_size, dtype=dtype)
    query, key, value = qkv.split([one.num_heads, one.num_kv_heads, one.num_kv_heads], dim=1)
    return query, key, value


def _pages(one: _Heads, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    key, value = meta(2, 4096, PAGE_SIZE, one.num_kv_heads, one.head_size, dtype=dtype).unbind(0)
    return key, value


def _decode(one: _Heads, num_seqs: int, is_graph: bool = False) -> Callable[[torch.dtype], None]:
    def call(dtype: torch.dtype) -> None:
        query, _, _ = _packed(one, num_seqs, dtype)
        key, value = _pages(one, dtype)
        lens, table = ints(num_seqs), ints(num_seqs, 512)
        with step_graph(ints(4096)) if is_graph else nullcontext():
            if one in _WINDOWED:
                sinks, starts = meta(one.num_heads, dtype=dtype), ints(num_seqs + 1)
                pages, most = (key, value, starts, lens, table), 512 * PAGE_SIZE
                flash_attn_varlen(query, *pages, 1, most, one.head_size**-0.5, num_seqs, one.window, sinks)
            else:
                flash_attn_decode(query, key, value, lens, table, 512 * PAGE_SIZE, one.head_size**-0.5)

    return call


def _prefill(one: _Heads, length: int, is_causal: bool = True) -> Callable[[torch.dtype], None]:
    def call(dtype: torch.dtype) -> None:
        flash_attn_prefill(*_packed(one, 2 * length, dtype), ints(3), length, one.head_size**-0.5, is_causal)

    return call


def _mixed(one: _Heads, length: int) -> Callable[[torch.dtype], None]:
    """Four sequences of one token each, two of up to `length`."""

    def call(dtype: torch.dtype) -> None:
        query, _, _ = _packed(one, 4 + length + 5, dtype)
        sinks = meta(one.num_heads, dtype=dtype) if one.has_sinks else None
        pages = (*_pages(one, dtype), ints(7), ints(6), ints(6, 512))
        scale = one.head_size**-0.5
        flash_attn_varlen(query, *pages, length, 512 * PAGE_SIZE, scale, 4, one.window, sinks)

    return call


def _dense(one: _Heads, batch: int, num_queries: int, num_past: int, is_by_query: bool) -> Callable[..., None]:
    """To a past, which is a layer's of those of all layers, and to themselves."""

    def call(dtype: torch.dtype) -> None:
        query, key, value = (t.unflatten(0, (batch, -1)) for t in _packed(one, batch * num_queries, dtype))
        past = meta(2, batch, 18, num_past, one.num_kv_heads, one.head_size, dtype=dtype)[:, :, 3].unbind(0)
        seen = meta(batch, num_queries if is_by_query else 1, num_past + num_queries, dtype=torch.bool)
        mask = seen.expand(-1, num_queries, -1)
        dense_attention(query, key, value, one.head_size**-0.5, mask, *(past if num_past else ()))

    return call


def _dense_launches() -> Iterator[Launch]:
    """In float32 production is torch's."""
    halves = (BF16, FP16)
    for batch in (1, 4):
        expert = _dense(_PI0, batch, 51, 816, is_by_query=True)
        yield Launch("Pi0", f"51 actions of {batch} to a prefix", expert, halves, is_tested=batch == 1)
        prefix = _dense(_PI0, batch, 864, 0, is_by_query=False)
        yield Launch("Pi0", f"prefix of {batch}", prefix, halves, is_tested=batch == 4)
    for model, heads, batch in (("SDXL text", 12, 2), ("SDXL text 2", 20, 2)):
        one = _Heads(model, heads, heads, 64)
        yield Launch(model, "77 tokens", _dense(one, batch, 77, 0, is_by_query=True), halves)
    for size in (64, 128):
        one = _Heads("heads of a mask", 16, 16, size)
        yield Launch(one.model, f"512 tokens, heads of {size}", _dense(one, 4, 512, 0, is_by_query=True), halves)


def launches() -> Iterator[Launch]:
    yield from _dense_launches()
    for one in (*_CACHED, *_WINDOWED):
        is_llama = one is _LLAMA
        for num_seqs in (1, 8, 16, 32, 64, 256):
            name = f"decode of {num_seqs} sequences"
            yield Launch(one.model, name, _decode(one, num_seqs), is_tested=is_llama and num_seqs == 1)
        for num_seqs in (1, 8):
            yield Launch(one.model, f"captured decode of {num_seqs} sequences", _decode(one, num_seqs, True))
        for length in (256, 4096):
            is_tested = is_llama and length == 4096
            yield Launch(one.model, f"prefill of {length} tokens", _prefill(one, length), is_tested=is_tested)
            is_tested = one.window is not None and length == 256
            yield Launch(one.model, f"mixed batch with {length} tokens", _mixed(one, length), is_tested=is_tested)

        def store(dtype: torch.dtype, one: _Heads = one) -> None:
            for tokens in (64, 4096):
                _, key, value = _packed(one, tokens, dtype)
                store_kvcache(key, value, *_pages(one, dtype), longs(tokens))

        yield Launch(one.model, "store_kvcache", store, is_tested=is_llama)
    for one in _WINDOWED:
        yield Launch(one.model, "mixed batch of single tokens", _mixed(one, 1))
    for one in _BIDIRECTIONAL:
        for length in (256, 1500, 8192):
            yield Launch(one.model, f"bidirectional attention of {length} tokens", _prefill(one, length, False))
