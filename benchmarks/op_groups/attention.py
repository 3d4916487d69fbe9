"""Attention of encoders over packed sequences, by head size, and of decoders and images to what encoders made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from fastkernels.context import ForwardContext, Phase
from fastkernels.tasks.baseline.L1.dense_attention import DenseAttention
from fastkernels.tasks.baseline.L1.flash_attn_prefill import FlashAttnPrefill
from fastkernels.tasks.baseline.L2.cross_attention import CrossAttention
from op_groups.bench import Bench, Call, Row

PAGE = 16


def rows(bench: Bench) -> Iterator[Row]:
    bge, pi0 = bench.config("bge-m3", "tiny-bge_m3"), bench.config("pi0_base", "tiny-pi0").vision
    qwen, dino = (
        bench.config("qwen2-vl-7b-instruct", "tiny-qwen2_vl").vision,
        bench.config("dinov3-vit7b16", "tiny-dinov3"),
    )
    patches = (pi0.image_size // pi0.patch_size) ** 2
    pixels = (dino.image_size // dino.patch_size) ** 2 + dino.num_prefix_tokens
    few = bench.is_rehearsal
    for model, heads, width, lens in (
        ("BGE-M3", bge.num_attention_heads, bge.hidden_size, [512, 384, 256, 128] * 16 if not few else [9, 4]),
        ("Pi0 SigLIP", pi0.num_attention_heads, pi0.hidden_size, [patches] * bench.size(48, 2)),
        ("Qwen2-VL-7B vision", qwen.num_heads, qwen.embed_dim, [bench.size(4096, 16)] * bench.size(4, 2)),
        ("DINOv3-7B", dino.num_attention_heads, dino.hidden_size, [pixels] * bench.size(64, 2)),
    ):
        yield _bidirectional(bench, model, heads, width // heads, lens)
    yield from _image_to_text(bench)
    yield from _to_a_prefix(bench)
    yield from _decoder_to_encoder(bench)


def _bidirectional(bench: Bench, model: str, heads: int, size: int, lens: Sequence[int]) -> Row:
    init = {"num_heads": heads, "head_size": size, "scale": size**-0.5, "num_kv_heads": heads, "is_causal": False}
    op = bench.build(FlashAttnPrefill, init, torch.bfloat16)
    starts = bench.ints([sum(lens[:i]) for i in range(len(lens) + 1)])
    longest, num_tokens = max(lens), sum(lens)

    def make() -> tuple[object, ...]:
        return *bench.randn(num_tokens, 3, heads, size).unbind(1), starts, longest

    def flash(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> Tensor:
        lengths = (starts, starts, longest, longest)
        return torch.ops.aten._flash_attention_forward(q, k, v, *lengths, 0.0, False, False, scale=size**-0.5)[0]

    def sdpa(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> Tensor:
        q, k, v = (x.unflatten(0, (len(lens), longest)).transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, scale=size**-0.5).transpose(1, 2).flatten(0, 1)

    others: dict[str, Call] = {} if bench.is_rehearsal else {"torch flash varlen": flash}
    if len(set(lens)) == 1:
        others["torch sdpa"] = sdpa
    shape = f"{len(lens)} x {min(lens)} to {longest}, {heads} heads of {size}"
    return bench.row(model, shape, op, make, others, init=init)


def _image_to_text(bench: Bench) -> Iterator[Row]:
    """Of SDXL; production is torch's own attention."""
    config = bench.config("stable-diffusion-xl-base-1.0", "tiny-sdxl")
    num_texts = config.text_encoder.max_position_embeddings
    for level, num_layers in enumerate(config.unet.transformer_layers):
        if not num_layers:
            continue
        heads, side = config.unet.num_heads[level], config.unet.sample_size >> level
        size = config.unet.block_out_channels[level] // heads
        op = bench.build(DenseAttention, {"num_heads": heads, "head_size": size}, torch.float16)

        def make(heads: int = heads, size: int = size, side: int = side) -> tuple[Tensor, ...]:
            query = bench.randn(2, side**2, heads, size, dtype=torch.float16)
            return query, *bench.randn(2, num_texts, 2, heads, size, dtype=torch.float16).unbind(2)

        def cudnn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in (query, key, value))
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return scaled_dot_product_attention(q, k, v).transpose(1, 2)

        others: dict[str, Call] = {} if bench.is_rehearsal else {"cudnn": cudnn}
        shape = f"2 x {side**2} to {num_texts}, {heads} heads of {size}"
        yield bench.row("SDXL", shape, op, make, others, dtype=torch.float16)


def _to_a_prefix(bench: Bench) -> Iterator[Row]:
    """Of Pi0: a prefix to itself but its padding, and the state and actions to a prefix and each other."""
    config = bench.config("pi0_base", "tiny-pi0")
    text, actions = config.text, 1 + config.chunk_size
    heads, kv_heads, size = text.num_attention_heads, text.num_key_value_heads, text.head_dim
    num_prefix = bench.size(3 * config.vision.num_tokens + 48, 29)
    init = {"num_heads": heads, "head_size": size, "num_kv_heads": kv_heads}
    op = bench.build(DenseAttention, init, torch.bfloat16)

    def of(batch: int, num_queries: int, num_past: int) -> tuple[object, ...]:
        qkv = bench.randn(batch, num_queries, heads + 2 * kv_heads, size)
        seen = torch.rand((batch, 1 if not num_past else num_queries, num_past + num_queries), device=bench.device)
        seen[:, :, 0] = 0.0
        past = bench.randn(2, batch, 2, num_past, kv_heads, size)[:, :, 1].unbind(0) if num_past else ()
        return *qkv.split([heads, kv_heads, kv_heads], 2), (seen < 0.9).expand(-1, num_queries, -1), *past

    for batch in (1, 4, 16) if not bench.is_rehearsal else (2,):
        for num_queries, num_past in ((actions, num_prefix), (num_prefix, 0)):
            yield bench.row(
                "Pi0",
                f"{batch} x {num_queries} to {num_past + num_queries}, {heads} heads of {size} on {kv_heads}",
                op,
                lambda batch=batch, num_queries=num_queries, num_past=num_past: of(batch, num_queries, num_past),
                {"torch sdpa": _whole_sdpa, "torch sdpa, keys expanded": partial(_whole_sdpa, is_expanded=True)},
            )


def _whole_sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *past: Tensor, is_expanded: bool = False
) -> Tensor:
    """By torch alone. is_expanded: a head of keys for each of query, without a copy, as fused kernels take it."""
    if past:
        key, value = torch.cat([past[0], key], dim=1), torch.cat([past[1], value], dim=1)
    group = query.shape[2] // key.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if is_expanded:
        k, v = (x[:, :, None].expand(-1, -1, group, -1, -1).flatten(1, 2) for x in (k, v))
    return scaled_dot_product_attention(q, k, v, mask[:, None], enable_gqa=not is_expanded).transpose(1, 2)


def _decoder_to_encoder(bench: Bench) -> Iterator[Row]:
    """Of Whisper, a token of each sequence over the states of its half minute, which lie in pages."""
    config = bench.config("whisper-large-v3", "tiny-whisper")
    heads, length = config.decoder_attention_heads, config.max_source_positions
    size, num_pages = config.d_model // heads, -(-length // PAGE)
    init = {"num_heads": heads, "head_size": size, "scale": size**-0.5}
    for n in (1, 8, 64) if not bench.is_rehearsal else (3,):
        op = bench.build(CrossAttention, init, torch.float16)
        op.kv_cache = bench.randn(2, n * num_pages, PAGE, heads, size, dtype=torch.float16)
        table = torch.randperm(n * num_pages, device=bench.device).view(n, num_pages).int()
        lens, starts = bench.ints([length] * n), torch.arange(n + 1, device=bench.device).int()
        ones, slots = bench.ints([1] * n), torch.arange(n, device=bench.device)
        context = ForwardContext(
            starts, ones, ones[:, None] - 1, slots, 1, 1, Phase.DECODE, n, cross_block_table=table, cross_seq_lens=lens
        )
        dense = [x[table.long()].flatten(1, 2)[:, :length].transpose(1, 2).contiguous() for x in op.kv_cache]

        def sdpa(query: Tensor, dense: Sequence[Tensor] = dense, heads: int = heads) -> Tensor:
            q = query.unflatten(-1, (heads, -1)).unsqueeze(2)
            return scaled_dot_product_attention(q, *dense).squeeze(2).flatten(1)

        yield bench.row(
            "Whisper-large-v3",
            f"{n} x 1 to {length}, {heads} heads of {size}",
            op,
            lambda n=n: (bench.randn(n, heads * size, dtype=torch.float16),),
            {"torch sdpa, dense cache": sdpa},
            dtype=torch.float16,
            context=context,
        )
