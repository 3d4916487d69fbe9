"""Calls that no published model makes and that the ops allow: what is compiled away elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.kernels.addcmul import addcmul
from fastkernels.kernels.apply_logit_bias import apply_logit_bias
from fastkernels.kernels.apply_penalties import apply_penalties
from fastkernels.kernels.causal_conv1d import causal_conv1d, causal_conv1d_update
from fastkernels.kernels.flash_attn_prefill import flash_attn_prefill
from fastkernels.kernels.flash_attn_varlen import flash_attn_varlen
from fastkernels.kernels.greedy_sample import greedy_sample
from fastkernels.kernels.group_norm import group_norm
from fastkernels.kernels.launch import WITHOUT_FP16, Launch, floats, ints, longs, meta
from fastkernels.kernels.layer_norm import add_layer_norm, layer_norm, layer_norm_of_sum
from fastkernels.kernels.moe_grouped_gemm import moe_grouped_gemm
from fastkernels.kernels.mxfp4_moe import mxfp4_moe
from fastkernels.kernels.rms_norm import rms_norm
from fastkernels.kernels.rotary_emb import rotary_embedding
from fastkernels.kernels.store_kvcache import store_kvcache
from fastkernels.kernels.top_k_per_row import MOST_COLUMNS, MOST_TAKEN, top_k_per_row
from fastkernels.kernels.top_k_top_p_sample import top_k_top_p_sample
from fastkernels.kernels.topk_softmax import topk_softmax

_MODEL = "no published model"


def launches() -> Iterator[Launch]:
    def turn(dtype: torch.dtype) -> None:
        q, table = meta(8, 32, 128, dtype=dtype), floats(4096, 128)
        rotary_embedding(longs(8), q, q, table, 128, 128, False)
        rotary_embedding(longs(8), q, None, table, 128, 128, True)
        rotary_embedding(longs(3, 8), q, q, table, 128, 128, True, (24, 20, 20), True)
        rotary_embedding(longs(8), q, q, floats(4096, 48), 128, 48, False)

    yield Launch(_MODEL, "rotary_embedding of pairs side by side, without a key, of axes in turn", turn)

    def norm(dtype: torch.dtype) -> None:
        rms_norm(meta(8, 32768, dtype=dtype), meta(32768, dtype=dtype), 1e-5)
        layer_norm(meta(8, 16384, dtype=dtype), None, None, 1e-5)
        for size in (8192, 16384):
            rows, vector = meta(8, size, dtype=dtype), meta(size, dtype=dtype)
            add_layer_norm(rows, rows, vector, vector, vector, 1e-5)
        layer_norm(meta(8, 257, dtype=dtype), meta(257, dtype=dtype), None, 1e-5)
        layer_norm_of_sum(meta(8, 257, dtype=dtype), meta(8, 257, dtype=dtype), None, None, None, 1e-5)
        addcmul(meta(8, 13, dtype=dtype), meta(8, 13, dtype=dtype), meta(13, dtype=dtype))
        x = meta(2, 24, 9, 7, dtype=dtype)
        for num_groups in (8, 24):
            group_norm(x, num_groups, None, None, 1e-5)
            group_norm(x.to(memory_format=torch.channels_last), num_groups, None, None, 1e-5)
            group_norm(x, num_groups, None, None, 1e-5, shift=meta(1, 24, dtype=dtype).expand(2, 24))
        group_norm(meta(3, 700, 1, dtype=dtype), 1, None, None, 1e-5)

    yield Launch(_MODEL, "norms without weights and of long rows", norm)

    def choose(dtype: torch.dtype) -> None:
        x = meta(3, 1000, dtype=dtype)
        greedy_sample(x)
        top_k_top_p_sample(x, floats(3), ints(3), floats(3), longs(3))
        apply_logit_bias(x, ints(3, 1), floats(3, 1))
        apply_penalties(x, longs(3), ints(5, 1000), floats(3), floats(3), floats(3))
        topk_softmax(meta(8, 67, dtype=dtype), 7, False)
        for num_columns in (5000, MOST_COLUMNS):
            top_k_per_row(meta(3, num_columns, dtype=dtype), MOST_TAKEN)

    yield Launch(_MODEL, "rows of 1000 logits", choose)

    def attend(dtype: torch.dtype) -> None:
        for heads, kv_heads, size in ((6, 2, 24), (64, 1, 128), (16, 2, 72)):
            q, k, v = meta(300, heads + 2 * kv_heads, size, dtype=dtype).split([heads, kv_heads, kv_heads], dim=1)
            key, value = meta(2, 64, 64, kv_heads, size, dtype=dtype).unbind(0)
            pages = (key, value, ints(4), ints(3), ints(3, 20))
            flash_attn_prefill(q, k, v, ints(3), 200, 0.1)
            flash_attn_varlen(q, *pages, 200, 1000, 0.1)
            flash_attn_varlen(q, *pages, 200, 1000, 0.1, window=100)
            store_kvcache(k, v, key, value, longs(300))

    yield Launch(
        _MODEL, "attention of 6 and of 64 heads to a key, of heads of 24 and 72, of a window without sinks", attend
    )

    def convolve(dtype: torch.dtype) -> None:
        where = (ints(4), meta(4, dtype=torch.bool))
        x, weight, states = meta(100, 37, dtype=dtype), meta(37, 3, dtype=dtype), meta(5, 2, 37, dtype=dtype)
        causal_conv1d(x, weight, None, states, ints(5), *where, 60, False)
        causal_conv1d_update(x[:4], states, weight, None, *where, False)

    yield Launch(_MODEL, "causal_conv1d of width 3 without an activation", convolve, WITHOUT_FP16)

    def multiply(dtype: torch.dtype) -> None:
        order = (ints(5 * 16), ints(16), ints(1))
        weight, bias = meta(8, 37, 53, dtype=dtype), meta(8, 37, dtype=dtype)
        moe_grouped_gemm(meta(20, 53, dtype=dtype), weight, bias, *order, 2)
        codes = meta(8, 37, 3, 16, dtype=torch.uint8)
        mxfp4_moe(meta(20, 96, dtype=dtype), codes, codes[..., 0], None, *order, 2)

    yield Launch(_MODEL, "experts of odd sizes in blocks of 5", multiply)
