"""Calls of every kernel at the sizes of the published models, for compiling ahead (ahead.py).

A call makes its tensors on the device "meta", so that a table of 26 GB takes no memory. Sizes are those of
engine/presets/; where a wrapper picks its way by shape, each way has a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from fastkernels.kernels.apply_logit_bias import apply_logit_bias
from fastkernels.kernels.apply_penalties import apply_penalties
from fastkernels.kernels.apply_token_bitmask import apply_token_bitmask
from fastkernels.kernels.backend import step_graph
from fastkernels.kernels.batch_norm2d import batch_norm2d
from fastkernels.kernels.causal_conv1d import causal_conv1d, causal_conv1d_update
from fastkernels.kernels.chunk_gated_delta_rule import chunk_gated_delta_rule
from fastkernels.kernels.dinov3_rope import dinov3_rope
from fastkernels.kernels.draw_seeds import draw_seeds
from fastkernels.kernels.embedding_bag import embedding_bag
from fastkernels.kernels.flash_attn_decode import flash_attn_decode
from fastkernels.kernels.flash_attn_prefill import flash_attn_prefill
from fastkernels.kernels.flash_attn_varlen import flash_attn_varlen
from fastkernels.kernels.gdn_recurrence import gdn_recurrence
from fastkernels.kernels.greedy_sample import greedy_sample
from fastkernels.kernels.group_norm import group_norm
from fastkernels.kernels.launch import BF16, FP16, FP32, WITHOUT_FP16, Launch, floats, ints, longs, meta
from fastkernels.kernels.launches_fused import fused_launches
from fastkernels.kernels.launches_other import other_launches
from fastkernels.kernels.layer_norm import layer_norm
from fastkernels.kernels.mamba_chunk_scan import mamba_chunk_scan
from fastkernels.kernels.mamba_ssm import selective_state_update
from fastkernels.kernels.min_p import min_p
from fastkernels.kernels.moe_align import moe_align
from fastkernels.kernels.moe_grouped_gemm import moe_grouped_gemm
from fastkernels.kernels.moe_sum import moe_sum
from fastkernels.kernels.mxfp4_moe import mxfp4_moe, unpack_mxfp4
from fastkernels.kernels.quickgelu import quickgelu
from fastkernels.kernels.rasterize_gaussians import rasterize_gaussians
from fastkernels.kernels.rms_norm import add_rms_norm, rms_norm
from fastkernels.kernels.rotary_emb import rotary_embedding
from fastkernels.kernels.silu_and_mul import silu_and_mul
from fastkernels.kernels.skinny_linear import skinny_linear
from fastkernels.kernels.spmm import spmm
from fastkernels.kernels.store_kvcache import store_kvcache
from fastkernels.kernels.swiglu_oai_and_mul import swiglu_oai_and_mul
from fastkernels.kernels.top_k_top_p_sample import top_k_top_p_sample
from fastkernels.kernels.top_logprobs import top_logprobs
from fastkernels.kernels.topk_softmax import topk_softmax

PAGE_SIZE = 16


def launches() -> list[Launch]:
    """All of them; names are unlike."""
    parts = (_sampling, _rows, _rotations, _attention, _states, _experts, _linear, _images, _tables)
    return [launch for part in (*parts, fused_launches, other_launches) for launch in part()]


_VOCABULARIES = {
    "Llama-3.1-8B": 128256,
    "Mixtral-8x7B": 32000,
    "Mamba-Codestral-7B": 32768,
    "Qwen3-Next-80B": 151936,
    "GPT-OSS-120B": 201088,
    "Whisper-large-v3": 51866,
    "Qwen2-VL-7B": 152064,
}


def _sampling() -> Iterator[Launch]:
    for model, vocab in _VOCABULARIES.items():
        is_first = model == "Llama-3.1-8B"
        for rows in (8, 256):

            def greedy(dtype: torch.dtype, rows: int = rows, vocab: int = vocab) -> None:
                greedy_sample(meta(rows, vocab, dtype=dtype))

            def sample(dtype: torch.dtype, rows: int = rows, vocab: int = vocab) -> None:
                x = meta(rows, vocab, dtype=dtype)
                top_k_top_p_sample(x, floats(rows), longs(rows), floats(rows), longs(rows))

            yield Launch(model, f"greedy_sample of {rows} rows", greedy, is_tested=is_first and rows == 8)
            yield Launch(model, f"top_k_top_p_sample of {rows} rows", sample, is_tested=is_first and rows == 8)
        for number in (0, 20):

            def logprobs(dtype: torch.dtype, number: int = number, vocab: int = vocab) -> None:
                top_logprobs(meta(8, vocab, dtype=dtype), longs(8), number)

            yield Launch(model, f"top_logprobs of {number}", logprobs, is_tested=is_first and number == 20)

        def change(dtype: torch.dtype, vocab: int = vocab) -> None:
            x, rows = meta(8, vocab, dtype=dtype), floats(8)
            apply_logit_bias(x, longs(8, 300), floats(8, 300))
            apply_penalties(x, longs(8), ints(256, vocab), rows, rows, rows)
            apply_token_bitmask(x, ints(8, -(-vocab // 32)), ints(8))
            min_p(x, rows, rows)

        yield Launch(model, "changes of logits", change, is_tested=is_first)
    yield Launch("all", "draw_seeds", lambda _: draw_seeds(longs(256), longs(64), longs(64)), (FP32,), is_tested=True)


_ROWS = (
    ("Llama-3.1-8B", 4096),
    ("Mamba-Codestral-7B gated", 8192),
    ("Qwen3-Next-80B", 2048),
    ("Qwen3-Next-80B heads", 256),
    ("GPT-OSS-120B", 2880),
    ("Qwen2-VL-7B", 3584),
    ("Pi0 expert", 1024),
)
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


def _rows() -> Iterator[Launch]:
    for model, size in _ROWS:
        for rows in (64, 8192):
            for has_residual in (False, True):

                def norm(dtype: torch.dtype, rows: int = rows, size: int = size, more: bool = has_residual) -> None:
                    x, weight = meta(rows, size, dtype=dtype), meta(size, dtype=dtype)
                    if more:
                        add_rms_norm(x, x, weight, 1e-5)
                    else:
                        rms_norm(x, weight, 1e-5)

                name = f"{'add_' if has_residual else ''}rms_norm of {rows} rows"
                yield Launch(model, name, norm, is_tested=model == "Llama-3.1-8B" and has_residual)
    for model, size in _LAYER_NORM_ROWS:

        def centred(dtype: torch.dtype, size: int = size) -> None:
            weight = meta(size, dtype=dtype)
            layer_norm(meta(1500, size, dtype=dtype), weight, weight, 1e-5)

        yield Launch(model, "layer_norm", centred, is_tested=model == "DINOv3-7B")
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


def _rotations() -> Iterator[Launch]:
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


def _attention() -> Iterator[Launch]:
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


def _states() -> Iterator[Launch]:
    where = (ints(4), meta(4, dtype=torch.bool))

    def mamba_parts(rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        xbc = meta(rows, 10240, dtype=dtype)
        x, b, c = xbc.split([8192, 1024, 1024], dim=-1)
        dt = meta(rows, 18560, dtype=dtype)[:, -128:]
        return x.unflatten(-1, (128, 64)), dt, b.unflatten(-1, (8, 128)), c.unflatten(-1, (8, 128))

    def scan(dtype: torch.dtype) -> None:
        x, dt, b, c = mamba_parts(4096, dtype)
        head, states = meta(128, dtype=dtype), floats(65, 128, 64, 128)
        mamba_chunk_scan(x, dt, head, b, c, head, head, states, ints(5), *where, (0.0, float("inf")))

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

    def rule(dtype: torch.dtype) -> None:
        q, k, v, g, beta, states = delta_parts(4096, dtype)
        chunk_gated_delta_rule(q, k, v, g, beta, states, ints(5), *where)

    def recurrence(dtype: torch.dtype) -> None:
        q, k, v, g, beta, states = delta_parts(4, dtype)
        gdn_recurrence(q, k, v, g, beta, states, *where)

    yield Launch("Qwen3-Next-80B", "chunk_gated_delta_rule", rule, WITHOUT_FP16, is_tested=True)
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


class _Experts(NamedTuple):
    model: str
    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    is_mxfp4: bool = False


_EXPERTS = (
    _Experts("Mixtral-8x7B", 8, 2, 4096, 14336),
    _Experts("Qwen3-Next-80B", 512, 10, 2048, 512),
    _Experts("GPT-OSS-120B", 128, 4, 2880, 2880, True),
)


def _products(one: _Experts, block_size: int) -> Callable[[torch.dtype], None]:
    """Both products of a layer's experts, for as many tokens as ask for blocks of block_size."""
    slots = {16: one.top_k, 32: 32 * one.num_experts, 64: 64 * one.num_experts, 128: 256 * one.num_experts}[block_size]

    def call(dtype: torch.dtype) -> None:
        blocks = slots // block_size + one.num_experts
        order = (ints(blocks * block_size), ints(blocks), ints(1))
        for rows, inputs, outputs, top_k in (
            (slots // one.top_k, one.hidden_size, 2 * one.intermediate_size, one.top_k),
            (slots // one.top_k * one.top_k, one.intermediate_size, one.hidden_size, 1),
        ):
            x = meta(rows, inputs, dtype=dtype)
            if one.is_mxfp4:
                codes = meta(one.num_experts, outputs, inputs // 32, 16, dtype=torch.uint8)
                bias = meta(one.num_experts, outputs, dtype=dtype)
                mxfp4_moe(x, codes, codes[..., 0], bias, *order, top_k)
            else:
                moe_grouped_gemm(x, meta(one.num_experts, outputs, inputs, dtype=dtype), None, *order, top_k)

    return call


def _experts() -> Iterator[Launch]:
    for one in _EXPERTS:
        is_first = one.model == "Mixtral-8x7B"
        for block_size in (16, 32, 64, 128):
            is_tested = block_size == 64 and one.model != "Qwen3-Next-80B"
            yield Launch(
                one.model, f"experts in blocks of {block_size}", _products(one, block_size), is_tested=is_tested
            )
        if one.is_mxfp4:
            yield Launch(one.model, "experts in fp32", _products(one, 64), (FP32,), is_tested=True)

            def unpack(dtype: torch.dtype, one: _Experts = one) -> None:
                shape = (one.num_experts, 2 * one.intermediate_size, one.hidden_size // 32, 16)
                codes = meta(*shape, dtype=torch.uint8)
                unpack_mxfp4(codes, codes[..., 0], dtype)

            yield Launch(one.model, "experts' weights unpacked", unpack, (BF16, FP16), is_tested=True)

        def choose(dtype: torch.dtype, one: _Experts = one) -> None:
            for tokens in (8, 2048):
                topk_softmax(floats(tokens, one.num_experts), one.top_k, True)
                slots = tokens * one.top_k
                moe_align(ints(tokens, one.top_k), one.num_experts, 16, slots + 16 * min(slots, one.num_experts))
                moe_sum(meta(tokens, one.top_k, one.hidden_size, dtype=dtype), floats(tokens, one.top_k))

        yield Launch(one.model, "routing", choose, is_tested=is_first)


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


def _linear() -> Iterator[Launch]:
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


def _images() -> Iterator[Launch]:
    for model, batch, channels, side, has_silu in (
        ("SDXL", 2, 320, 128, True),
        ("SDXL", 2, 1280, 32, False),
        ("SDXL", 2, 2560, 32, True),
        ("SDXL decoder", 1, 512, 128, True),
        ("SDXL decoder", 1, 128, 1024, True),
    ):
        for order in (torch.contiguous_format, torch.channels_last):

            def by_group(
                dtype: torch.dtype,
                shape: tuple[int, int, int] = (batch, channels, side),
                has_silu: bool = has_silu,
                order: torch.memory_format = order,
            ) -> None:
                x = meta(*shape, shape[2], dtype=dtype).to(memory_format=order)
                weight = meta(shape[1], dtype=dtype)
                group_norm(x, 32, weight, weight, 1e-5, has_silu)

            layout = "channels last" if order is torch.channels_last else "planes"
            name = f"group_norm of {channels} x {side} x {side}, {layout}"
            yield Launch(model, name, by_group, is_tested=channels == 320 and order is torch.channels_last)
    for channels, side in ((16, 320), (64, 80), (80, 20), (256, 20)):

        def by_channel(dtype: torch.dtype, channels: int = channels, side: int = side) -> None:
            each = (meta(channels, dtype=dtype),) * 4
            x = meta(8, channels, side, side, dtype=dtype)
            for has_silu in (False, True):
                batch_norm2d(x, *each, 1e-3, has_silu)
                batch_norm2d(x.to(memory_format=torch.channels_last), *each, 1e-3, has_silu)

        name = f"batch_norm2d of {channels} x {side} x {side}"
        yield Launch("YOLOv10-N", name, by_channel, is_tested=channels == 64)

    def render(dtype: torch.dtype) -> None:
        number, tiles = 100_000, 80 * 45
        means, triples, ones = floats(1, number, 2), floats(1, number, 3), floats(1, number)
        ids, offsets = longs(16 * number), ints(tiles + 1)
        rasterize_gaussians(means, triples, triples, ones, ids, offsets, floats(1, 3), 1280, 720)

    yield Launch("3DGS", "rasterize_gaussians", render, (FP32,), is_tested=True)


def _tables() -> Iterator[Launch]:
    def look_up(dtype: torch.dtype) -> None:
        embedding_bag(longs(2048, 26, 128), longs(26), meta(204_000_000, 128, dtype=dtype))

    def propagate(dtype: torch.dtype) -> None:
        users_and_items, edges = 6040 + 3706, 2 * 1_000_209
        x, values = meta(users_and_items, 64, dtype=dtype), meta(edges, dtype=dtype)
        spmm(longs(users_and_items + 1), longs(edges), values, x)

    yield Launch("DLRMv2", "embedding_bag", look_up, is_tested=True)
    yield Launch("LightGCN", "spmm", propagate, is_tested=True)
