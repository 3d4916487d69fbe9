"""Times the kernels of Llama 3.1 8B's ops against PyTorch's paths: `python benchmarks/llama_kernels.py --out FILE`.

kernel_timing.py says how; shares are of a device copy measured in the same process.
tune_llama_kernels.py tries launch configurations.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
import torch._dynamo
import torch.nn.functional as F
from kernel_timing import Call, Row, copy_row, environment, measure, num_sets, print_table, randn
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastkernels.kernels import flash_attn_decode as decode
from fastkernels.kernels import flash_attn_prefill as prefill
from fastkernels.kernels import rms_norm as norm
from fastkernels.kernels import rotary_emb as rotary
from fastkernels.kernels import silu_and_mul as silu
from fastkernels.kernels import store_kvcache as store
from fastkernels.kernels.flash_attn_varlen import flash_attn_varlen
from fastkernels.kernels.top_k_top_p_sample import top_k_top_p_sample

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_SIZE, VOCAB, PAGE = 4096, 14336, 32, 8, 128, 128256, 16
SCALE = HEAD_SIZE**-0.5


def norm_rows(num_rows: int, hidden: int = HIDDEN) -> list[Row]:
    weight, num_bytes = randn(hidden), 2 * num_rows * hidden * 2
    sets = [(randn(num_rows, hidden), randn(num_rows, hidden)) for _ in range(num_sets(num_bytes))]

    def torch_add(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        h = x.float() + r.float()
        return F.rms_norm(h, (hidden,), weight.float(), 1e-5).to(x.dtype), h.to(x.dtype)

    compiled, compiled_add = torch.compile(F.rms_norm, dynamic=False), torch.compile(torch_add, dynamic=False)
    plain = {
        "ours": [lambda x=x: norm.rms_norm(x, weight, 1e-5) for x, _ in sets],
        "torch": [lambda x=x: F.rms_norm(x, (hidden,), weight, 1e-5) for x, _ in sets],
        "compiled": [lambda x=x: compiled(x, (hidden,), weight, 1e-5) for x, _ in sets],
    }
    added = {
        "ours": [lambda x=x, r=r: norm.add_rms_norm(x, r, weight, 1e-5) for x, r in sets],
        "compiled": [lambda x=x, r=r: compiled_add(x, r) for x, r in sets],
    }
    shape = f"{num_rows}x{hidden}"
    return [
        measure(Row("rms_norm", shape, num_bytes), plain),
        measure(Row("add_rms_norm", shape, 2 * num_bytes), added),
    ]


def silu_rows(num_rows: int) -> list[Row]:
    num_bytes = num_rows * 3 * INNER * 2
    sets = [randn(num_rows, 2 * INNER) for _ in range(num_sets(num_bytes))]

    def torch_silu(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    compiled = torch.compile(torch_silu, dynamic=False)
    paths = {
        name: [lambda x=x, f=f: f(x) for x in sets]
        for name, f in (("ours", silu.silu_and_mul), ("torch", torch_silu), ("compiled", compiled))
    }
    return [measure(Row("silu_and_mul", f"{num_rows}x2x{INNER}", num_bytes), paths)]


def rotary_rows(num_tokens: int) -> list[Row]:
    width = (HEADS + KV_HEADS) * HEAD_SIZE
    num_bytes = num_tokens * (2 * width * 2 + HEAD_SIZE * 4 + 8)
    angles = torch.rand(131072, HEAD_SIZE // 2, device="cuda") * 6
    table = torch.cat((angles.cos(), angles.sin()), dim=-1)
    sets = [
        (torch.randint(0, 131072 - num_tokens, (1,), device="cuda") + torch.arange(num_tokens, device="cuda"), x)
        for x in (randn(num_tokens, width + KV_HEADS * HEAD_SIZE) for _ in range(num_sets(num_bytes)))
    ]

    def split(x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, : HEADS * HEAD_SIZE], x[:, HEADS * HEAD_SIZE : width]

    def torch_rotary(positions: Tensor, x: Tensor) -> list[Tensor]:
        cos, sin = table[positions].unsqueeze(1).chunk(2, dim=-1)
        halves = (y.unflatten(1, (-1, HEAD_SIZE)).float().chunk(2, dim=-1) for y in split(x))
        return [torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype).flatten(1) for a, b in halves]

    compiled = torch.compile(torch_rotary, dynamic=False)
    paths = {
        "ours": [
            lambda p=p, x=x: rotary.rotary_embedding(p, *split(x), table, HEAD_SIZE, HEAD_SIZE, True) for p, x in sets
        ],
        "torch": [lambda p=p, x=x: torch_rotary(p, x) for p, x in sets[:8]],
        "compiled": [lambda p=p, x=x: compiled(p, x) for p, x in sets],
    }
    return [measure(Row("rotary_embedding", f"{num_tokens} tokens", num_bytes), paths)]


def store_rows(num_tokens: int, is_scattered: bool = False) -> list[Row]:
    width = KV_HEADS * HEAD_SIZE
    num_bytes = num_tokens * (2 * 2 * width * 2 + 8)
    count = num_sets(num_bytes)
    cache = randn(2, (count + 1) * -(-num_tokens // PAGE), PAGE, KV_HEADS, HEAD_SIZE)
    sets = []
    for i in range(count):
        qkv = randn(num_tokens, (HEADS + 2 * KV_HEADS) * HEAD_SIZE)
        key, value = (y.unflatten(1, (KV_HEADS, HEAD_SIZE)) for y in qkv.split(width, dim=-1)[-2:])
        slots = torch.arange(num_tokens, device="cuda") + i * num_tokens
        if is_scattered:
            slots = slots[torch.randperm(num_tokens, device="cuda")]
        sets.append((key, value, slots))

    def torch_store(key: Tensor, value: Tensor, slots: Tensor) -> None:
        cache[0].flatten(0, 1)[slots] = key
        cache[1].flatten(0, 1)[slots] = value

    paths = {
        "ours": [lambda k=k, v=v, s=s: store.store_kvcache(k, v, cache[0], cache[1], s) for k, v, s in sets],
        "torch": [lambda k=k, v=v, s=s: torch_store(k, v, s) for k, v, s in sets],
    }
    shape = f"{num_tokens} tokens{' scattered' if is_scattered else ''}"
    return [measure(Row("store_kvcache", shape, num_bytes), paths)]


def decode_sets(batch: int, context: int) -> tuple[list[tuple[Tensor, ...]], int]:
    """Scattered pages: [(query, cache, lengths, table)], and the bytes of one call."""
    num_bytes = batch * (context * 2 * KV_HEADS + 2 * HEADS) * HEAD_SIZE * 2
    pages = batch * -(-context // PAGE)
    sets = []
    for _ in range(min(num_sets(num_bytes), 16)):
        table = torch.randperm(pages, device="cuda", dtype=torch.int32).view(batch, -1)
        lengths = torch.full((batch,), context, dtype=torch.int32, device="cuda")
        sets.append((randn(batch, HEADS, HEAD_SIZE), randn(2, pages, PAGE, KV_HEADS, HEAD_SIZE), lengths, table))
    return sets, num_bytes


def decode_rows(batch: int, context: int, max_seq_len: int | None = None) -> list[Row]:
    sets, num_bytes = decode_sets(batch, context)
    longest = max_seq_len or context

    def ours(q: Tensor, c: Tensor, n: Tensor, t: Tensor) -> Tensor:
        return decode.flash_attn_decode(q, c[0], c[1], n, t, longest, SCALE)

    def dense(q: Tensor, c: Tensor, n: Tensor, t: Tensor) -> Tensor:
        k, v = (x.view(batch, -1, KV_HEADS, HEAD_SIZE)[:, :context].transpose(1, 2) for x in c)
        return F.scaled_dot_product_attention(q.unsqueeze(2), k, v, scale=SCALE, enable_gqa=True)

    paths: dict[str, list[Call]] = {"ours": [lambda s=s: ours(*s) for s in sets]}
    if max_seq_len is None:
        paths["sdpa, dense cache"] = [lambda s=s: dense(*s) for s in sets]
    shape = f"{batch} x {context}" + (f" of {max_seq_len}" if max_seq_len else "")
    return [measure(Row("flash_attn_decode", shape, num_bytes), paths)]


def prefill_rows(batch: int, length: int) -> list[Row]:
    num_flops = 2 * batch * length * length * HEADS * HEAD_SIZE
    starts = torch.arange(batch + 1, dtype=torch.int32, device="cuda") * length
    sets = []
    for _ in range(3):
        qkv = randn(batch * length, HEADS + 2 * KV_HEADS, HEAD_SIZE)
        q, k, v = qkv.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
        sets.append((q, k, v))
    pages = batch * -(-length // PAGE)
    cache = randn(2, pages, PAGE, KV_HEADS, HEAD_SIZE)
    table = torch.randperm(pages, device="cuda", dtype=torch.int32).view(batch, -1)
    lengths = torch.full((batch,), length, dtype=torch.int32, device="cuda")

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.ops.aten._flash_attention_forward(
            q, k, v, starts, starts, length, length, 0.0, True, False, scale=SCALE
        )[0]

    def sdpa(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend) -> Tensor:
        q, k, v = (x.unflatten(0, (batch, length)).transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE, enable_gqa=True)

    paths: dict[str, list[Call]] = {
        "ours": [lambda s=s: prefill.flash_attn_prefill(*s, starts, length, SCALE) for s in sets],
        "paged": [
            lambda s=s: flash_attn_varlen(s[0], cache[0], cache[1], starts, lengths, table, length, length, SCALE)
            for s in sets
        ],
        "flash varlen": [lambda s=s: flash(*s) for s in sets],
        "cudnn dense": [lambda s=s: sdpa(*s, SDPBackend.CUDNN_ATTENTION) for s in sets],
    }
    return [measure(Row("flash_attn_prefill", f"{batch} x {length}", 0, num_flops), paths)]


def sample_rows(num_rows: int, top_k: int, top_p: float, spread: float) -> list[Row]:
    num_bytes = num_rows * VOCAB * 2
    sets = [randn(num_rows, VOCAB) * spread for _ in range(min(num_sets(num_bytes), 8))]
    ones = torch.ones(num_rows, device="cuda")
    k, p, seeds = (ones * top_k).int(), ones * top_p, torch.arange(num_rows, device="cuda")

    def sort(x: Tensor) -> Tensor:
        ordered, ids = x.float().sort(descending=True)
        probs = ordered.masked_fill(torch.arange(VOCAB, device="cuda") >= (top_k or VOCAB), -torch.inf).softmax(-1)
        probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p, 0.0)
        return ids.gather(1, (probs / torch.empty_like(probs).exponential_()).argmax(-1, keepdim=True))

    def gumbel(x: Tensor) -> Tensor:
        return (x.float().softmax(-1) / torch.empty_like(x, dtype=torch.float32).exponential_()).argmax(-1)

    paths: dict[str, list[Call]] = {"ours": [lambda x=x: top_k_top_p_sample(x, ones, k, p, seeds) for x in sets]}
    torch_path = sort if top_k or top_p < 1 else torch.compile(gumbel, dynamic=False)
    paths["torch"] = [lambda x=x: torch_path(x) for x in sets[:3]]
    shape = f"{num_rows} rows, k {top_k}, p {top_p}, spread {spread}"
    return [measure(Row("top_k_top_p_sample", shape, num_bytes), paths)]


def all_rows() -> list[Row]:
    rows = [copy_row()]
    for num_rows in (1, 32, 256, 8192, 16384):
        rows += norm_rows(num_rows)
    rows += norm_rows(16384, 8192)
    for num_rows in (1, 32, 256, 8192):
        rows += silu_rows(num_rows)
    for num_tokens in (1, 32, 256, 8192, 16384):
        rows += rotary_rows(num_tokens)
    for num_tokens in (1, 256, 8192, 32768):
        rows += store_rows(num_tokens)
    rows += store_rows(32768, is_scattered=True)
    for batch, context in ((1, 512), (1, 8192), (8, 2048), (32, 640), (32, 8192), (256, 640), (256, 2048)):
        rows += decode_rows(batch, context)
    rows += decode_rows(32, 640, 8192) + decode_rows(1, 512, 8192)
    for batch, length in ((32, 128), (16, 512), (8, 2048), (4, 4096), (1, 8192), (1, 32768)):
        rows += prefill_rows(batch, length)
    for num_rows, top_k, top_p, spread in (
        (1, 0, 1.0, 1.0), (256, 0, 1.0, 1.0), (256, 50, 0.9, 3.0), (256, 0, 0.9, 4.0), (256, 0, 0.9, 1.0),
    ):  # fmt: skip
        rows += sample_rows(num_rows, top_k, top_p, spread)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch._dynamo.config.recompile_limit = 64
    rows = all_rows()
    arguments.out.write_text(json.dumps({"environment": environment(), "rows": [asdict(r) for r in rows]}, indent=1))
    print_table(rows)


if __name__ == "__main__":
    main()
