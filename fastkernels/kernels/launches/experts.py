"""Routing, and the products of mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from fastkernels.kernels.launch import BF16, FP16, FP32, Launch, floats, ints, meta
from fastkernels.kernels.moe_align import moe_align
from fastkernels.kernels.moe_grouped_gemm import clear_left_out, moe_grouped_gemm
from fastkernels.kernels.moe_sum import moe_sum
from fastkernels.kernels.mxfp4_moe import mxfp4_moe, unpack_mxfp4
from fastkernels.kernels.topk_softmax import topk_softmax


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


def launches() -> Iterator[Launch]:
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

        def clear(dtype: torch.dtype, one: _Experts = one) -> None:
            slots = 512 * one.num_experts
            clear_left_out(meta(slots, one.hidden_size, dtype=dtype), ints(slots), ints(1), 128)

        yield Launch(one.model, "rows of other ranks' experts", clear, (BF16,), is_tested=is_first)

        def choose(dtype: torch.dtype, one: _Experts = one) -> None:
            for tokens in (8, 2048):
                topk_softmax(floats(tokens, one.num_experts), one.top_k, True)
                slots = tokens * one.top_k
                moe_align(ints(tokens, one.top_k), one.num_experts, 16, slots + 16 * min(slots, one.num_experts))
                moe_sum(meta(tokens, one.top_k, one.hidden_size, dtype=dtype), floats(tokens, one.top_k))

        yield Launch(one.model, "routing", choose, is_tested=is_first)
