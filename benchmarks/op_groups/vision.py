"""Rotations of V-JEPA 2 and Qwen2-VL, and the boxes of YOLOv10."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastkernels.tasks.baseline.L1.dfl_boxes import DFLBoxes
from fastkernels.tasks.baseline.L1.mrope import MRotaryEmbedding
from fastkernels.tasks.baseline.L1.vision_rotary_emb import VisionRotaryEmbedding
from fastkernels.tasks.baseline.L1.vjepa2_rope import VJEPA2Rope
from op_groups.bench import Bench, Row


def rows(bench: Bench) -> Iterator[Row]:
    for heads, tokens, grid in ((16, 8192, 16), (22, 4608, 16)):
        grid = bench.size(grid, 4)
        tokens = bench.size(tokens, 2 * grid**2)
        yield bench.row(
            "V-JEPA 2",
            f"{tokens} x {heads} x 64",
            bench.build(VJEPA2Rope, {"head_size": 64, "grid_size": grid}, torch.bfloat16),
            lambda heads=heads, tokens=tokens: bench.randn(1, tokens, 3, heads, 64).unbind(2)[:2],
        )
    yield from _mrope(bench)
    num_places = bench.size(8400, 9)
    for stride, side in ((8, 80), (16, 40), (32, 20)):
        side = bench.size(side, 3)
        yield bench.row(
            "YOLOv10-N",
            f"{side} x {side}",
            bench.build(DFLBoxes, {"reg_max": 16, "stride": stride}, torch.float16),
            lambda side=side: (
                bench.randn(1, num_places, 64, dtype=torch.float16)[:, : side**2]
                .transpose(1, 2)
                .unflatten(2, (side, side)),
            ),
            dtype=torch.float16,
        )


def _mrope(bench: Bench) -> Iterator[Row]:
    config = bench.config("qwen2-vl-7b-instruct", "tiny-qwen2_vl")
    text, vision = config.text, config.vision
    heads, kv_heads, size = text.num_attention_heads, text.num_key_value_heads, text.head_size
    longest = bench.size(32768, 512)
    init = {
        "head_size": size,
        "rotary_dim": size,
        "max_position_embeddings": longest,
        "base": text.rope_theta,
        "mrope_section": text.mrope_section,
    }
    op = bench.build(MRotaryEmbedding, init, torch.bfloat16)
    for n in (1, 64, 8192) if not bench.is_rehearsal else (5,):

        def of_text(n: int = n) -> tuple[Tensor, ...]:
            """A picture among the tokens: time stands still, rows and columns run."""
            first = torch.randint(longest - n, (1,), device=bench.device)
            place = torch.arange(n, device=bench.device)
            side = max(1, int(n**0.5))
            positions = torch.stack([first.expand(n), first + place // side % side, first + place % side])
            qkv = bench.randn(n, (heads + 2 * kv_heads) * size)
            return positions, *qkv.split([heads * size, kv_heads * size, kv_heads * size], dim=-1)[:2]

        yield bench.row("Qwen2-VL-7B", f"{n} x ({heads} + {kv_heads}) x {size}", op, of_text)
    num_heads = vision.num_heads
    init = {"head_size": vision.embed_dim // num_heads, "max_position_embeddings": bench.size(8192, 64)}
    side = bench.size(64, 4)
    shape = (4 * side**2, 3, num_heads, vision.embed_dim // num_heads)

    def of_patches() -> tuple[Tensor, ...]:
        place = torch.arange(side**2, device=bench.device).repeat(4)
        return torch.stack([place // side, place % side]), *bench.randn(*shape).unbind(1)[:2]

    op = bench.build(VisionRotaryEmbedding, init, torch.bfloat16)
    yield bench.row("Qwen2-VL-7B vision", f"{shape[0]} x {num_heads} x {shape[3]}", op, of_patches)
