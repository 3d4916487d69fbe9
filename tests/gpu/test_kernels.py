"""The kernels on a GPU at full sizes, in bf16, fp16 and fp32, against float64 definitions."""

import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fastkernels.kernels.backend import step_graph
from fastkernels.kernels.flash_attn_decode import flash_attn_decode
from fastkernels.kernels.flash_attn_prefill import flash_attn_prefill
from fastkernels.kernels.flash_attn_varlen import flash_attn_varlen
from fastkernels.kernels.rms_norm import add_rms_norm, rms_norm
from fastkernels.kernels.rotary_emb import rotary_embedding
from fastkernels.kernels.silu_and_mul import silu_and_mul
from fastkernels.kernels.skinny_linear import MAX_ROWS, fast_linear, is_skinny, skinny_linear
from fastkernels.kernels.store_kvcache import store_kvcache
from fastkernels.kernels.top_k_top_p_sample import top_k_top_p_sample
from fastkernels.noise import random_uniform
from fastkernels.tasks.baseline.window_attention import window_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
NAN = float("nan")
HALF_ULP = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12, torch.float32: 2.0**-25}
# Probabilities are rounded to the dtype before they meet the values; relative to the norm of the output.
ATTENTION = {torch.bfloat16: 3e-3, torch.float16: 4e-4, torch.float32: 2e-6}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every torch.empty is NaN: an element that no kernel wrote shows."""
    torch.manual_seed(0)
    empty = torch.empty

    def fill(*args: object, **kwargs: object) -> Tensor:
        x = empty(*args, **kwargs)  # type: ignore[call-overload]
        return x.fill_(NAN) if x.is_floating_point() else x.fill_(2**30)

    monkeypatch.setattr(torch, "empty", fill)


def randn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def assert_rounded(got: Tensor, expected: Tensor, scale: Tensor | None = None) -> None:
    """Within one rounding to the dtype and 8 of float32, relative to `scale` (the terms) where they cancel."""
    tolerance = expected.abs() * 2 * HALF_ULP[got.dtype] + (expected if scale is None else scale).abs() * 5e-7
    error = (got.double() - expected).abs()
    tiny = 6e-8 if got.dtype == torch.float16 else 1e-37
    assert (error <= tolerance + tiny).all(), f"worst ratio {(error / (tolerance + tiny)).max()}"


def assert_near_norm(got: Tensor, expected: Tensor) -> None:
    error = ((got.double() - expected).norm() / expected.norm()).item()
    assert error < ATTENTION[got.dtype], f"relative error {error}"
    worst = ((got.double() - expected).abs().max() / expected.abs().max()).item()
    assert worst < 8 * ATTENTION[got.dtype], f"worst element {worst}"


def attended(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    group = query.shape[1] // key.shape[1]
    k, v = (x.double().repeat_interleave(group, dim=1) for x in (key, value))
    out = query.new_zeros(query.shape, dtype=torch.float64)
    query_len, seq_len = query.shape[0], key.shape[0]
    for start in range(0, query_len, 256):
        rows = torch.arange(start, min(start + 256, query_len), device=query.device)
        scores = torch.einsum("qhd,khd->hqk", query[rows].double(), k) * scale
        last_key = rows + seq_len - query_len
        is_seen = torch.arange(seq_len, device=query.device)[None] <= last_key[:, None]
        out[rows] = torch.einsum("hqk,khd->qhd", scores.masked_fill(~is_seen, float("-inf")).softmax(-1), v)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "hidden_size"), [(8192, 4096), (1, 4096), (300, 5120), (77, 1021), (3, 20001)])
def test_norms_equal_their_definition(num_rows: int, hidden_size: int, dtype: torch.dtype) -> None:
    x, residual = randn(num_rows, hidden_size + 8, dtype=dtype)[:, :-8], randn(num_rows, hidden_size, dtype=dtype)
    weight = randn(hidden_size, dtype=dtype)
    y, h = add_rms_norm(x, residual, weight, 1e-5)
    total = x.double() + residual.double()
    scale = (total.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    assert_rounded(y, total * scale, (x.double().abs() + residual.double().abs()) * scale.abs())
    assert h.equal((x.float() + residual.float()).to(dtype))
    alone = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    assert_rounded(rms_norm(x, weight, 1e-5), alone)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "d"), [(8192, 14336), (1, 14336), (33, 1031), (70000, 24)])
def test_silu_and_mul_equals_its_definition(num_rows: int, d: int, dtype: torch.dtype) -> None:
    x = randn(num_rows, 2 * d, dtype=dtype) * 3
    gate, up = x.double().chunk(2, dim=-1)
    assert_rounded(silu_and_mul(x), gate / (1 + (-gate).exp()) * up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "head_size", "rotary_dim"), [(32, 8, 128, 128), (7, 1, 80, 32)])
def test_rotary_embedding_equals_its_definition(
    heads: int, kv_heads: int, head_size: int, rotary_dim: int, is_neox: bool, dtype: torch.dtype
) -> None:
    num_tokens = 4099
    angles = torch.rand(9000, rotary_dim // 2, device="cuda") * 6
    table = torch.cat((angles.cos(), angles.sin()), dim=-1)
    positions = torch.randint(0, 9000, (num_tokens,), device="cuda")
    qkv = randn(num_tokens, (heads + 2 * kv_heads) * head_size, dtype=dtype)
    parts = qkv.split((heads * head_size, kv_heads * head_size, kv_heads * head_size), dim=-1)
    got = rotary_embedding(positions, parts[0], parts[1], table, head_size, rotary_dim, is_neox)
    cos, sin = table[positions].double().unsqueeze(1).chunk(2, dim=-1)
    half = rotary_dim // 2
    first = slice(0, half) if is_neox else slice(0, rotary_dim, 2)
    second = slice(half, rotary_dim) if is_neox else slice(1, rotary_dim, 2)
    for x, y in zip(parts[:2], got, strict=True):
        assert y is not None
        expected = x.double().unflatten(1, (-1, head_size)).clone()
        a, b = expected[..., first].clone(), expected[..., second].clone()
        expected[..., first], expected[..., second] = a * cos - b * sin, a * sin + b * cos
        terms = expected.clone()
        terms[..., first] = terms[..., second] = a.abs() + b.abs()
        assert_rounded(y, expected.flatten(1), terms.flatten(1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("page_size", "heads", "head_size"), [(16, 8, 128), (1, 1, 80), (33, 3, 65)])
def test_store_kvcache_moves_bits(page_size: int, heads: int, head_size: int, dtype: torch.dtype) -> None:
    num_tokens, num_pages = 5000, 6000 // page_size
    cache = torch.full((2, num_pages, page_size, heads, head_size), NAN, dtype=dtype, device="cuda")
    qkv = randn(num_tokens, 3 * heads * head_size, dtype=dtype)
    key, value = (x.unflatten(1, (heads, head_size)) for x in qkv.chunk(3, dim=-1)[1:])
    slots = torch.randperm(num_pages * page_size, device="cuda")[:num_tokens]
    slots[::7] = -1
    expected = cache.clone().flatten(1, 2)
    expected[0, slots[slots >= 0]], expected[1, slots[slots >= 0]] = key[slots >= 0], value[slots >= 0]
    store_kvcache(key, value, cache[0], cache[1], slots)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(cache.flatten(1, 2).view(bits), expected.view(bits))


def test_store_kvcache_reaches_past_two_to_the_31_elements() -> None:
    cache = torch.zeros(2, 600_000, 16, 2, 128, dtype=torch.bfloat16, device="cuda")
    key, value = randn(2, 3, 2, 128, dtype=torch.bfloat16)
    slots = torch.tensor([599_999 * 16 + 15, 550_000 * 16, 0], device="cuda")
    store_kvcache(key, value, cache[0], cache[1], slots)
    assert cache[0].flatten(0, 1)[slots].equal(key)
    assert cache[1].flatten(0, 1)[slots].equal(value)
    table = torch.tensor([[599_999], [0]], device="cuda", dtype=torch.int32)
    cache[0, 599_999, 0], cache[1, 599_999, 0] = key[1], value[1]
    lens = torch.tensor([1, 1], device="cuda", dtype=torch.int32)
    out = flash_attn_decode(key[:2], cache[0], cache[1], lens, table, 1, 1.0)
    assert out[0].equal(value[1])


def paged(lengths: list[int], heads: int, head_size: int, page_size: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(cache, block_table, seq_lens, keys, values): scattered pages, NaN behind every end, -1 behind every row."""
    num_pages = [-(-length // page_size) for length in lengths]
    cache = torch.full((2, sum(num_pages) + 3, page_size, heads, head_size), NAN, dtype=dtype, device="cuda")
    table = torch.full((len(lengths), max(num_pages) + 2), -1, dtype=torch.int32)
    free = torch.randperm(cache.shape[1])
    both = randn(2, sum(lengths), heads, head_size, dtype=dtype)
    slots, used = [], 0
    for row, count in enumerate(num_pages):
        table[row, :count] = free[used : used + count]
        used += count
        places = torch.arange(lengths[row])
        slots.append(table[row].long()[places // page_size] * page_size + places % page_size)
    flat = cache.flatten(1, 2)
    flat[:, torch.cat(slots).cuda()] = both
    return cache, table.cuda(), torch.tensor(lengths, dtype=torch.int32, device="cuda"), both[0], both[1]


SHAPES = [(32, 8, 128, 16), (8, 8, 64, 16), (71, 71, 80, 7), (12, 1, 96, 1), (16, 2, 256, 64), (5, 1, 33, 16)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_size", "page_size"), SHAPES)
def test_decode_equals_its_definition(
    heads: int, kv_heads: int, head_size: int, page_size: int, dtype: torch.dtype
) -> None:
    for lengths in ([1, 640, 0, 2049, 33], [5000], [17] * 300):
        cache, table, lens, keys, values = paged(lengths, kv_heads, head_size, page_size, dtype)
        query, scale = randn(len(lengths), heads, head_size, dtype=dtype), head_size**-0.5
        starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        for max_seq_len in (max(lengths), 20000):
            out = flash_attn_decode(query, cache[0], cache[1], lens, table, max_seq_len, scale)
            expected = torch.zeros_like(out, dtype=torch.float64)
            for row, (begin, end) in enumerate(pairwise(starts)):
                if begin < end:
                    expected[row] = attended(query[row : row + 1], keys[begin:end], values[begin:end], scale)[0]
            assert_near_norm(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_size", "page_size"), SHAPES)
def test_varlen_and_prefill_equal_their_definition(
    heads: int, kv_heads: int, head_size: int, page_size: int, dtype: torch.dtype
) -> None:
    scale = head_size**-0.5
    for lengths, new in (([1, 640, 0, 900, 33], [1, 300, 0, 1, 33]), ([777], [777]), ([64, 64], [64, 64])):
        cache, table, lens, keys, values = paged(lengths, kv_heads, head_size, page_size, dtype)
        starts = torch.tensor([0, *new], device="cuda").cumsum(0).int()
        query = randn(sum(new), (heads + 1) * head_size, dtype=dtype)[:, head_size:].unflatten(1, (-1, head_size))
        out = flash_attn_varlen(query, cache[0], cache[1], starts, lens, table, max(new), max(lengths), scale)
        first = 0
        expected = []
        for (begin, end), length in zip(pairwise(starts.tolist()), lengths, strict=True):
            rows = slice(first, first + length)
            expected.append(attended(query[begin:end], keys[rows], values[rows], scale))
            first += length
        assert_near_norm(out, torch.cat(expected))
        padded = torch.cat((keys, torch.full_like(keys[:1], NAN))), torch.cat((values, torch.full_like(keys[:1], NAN)))
        whole = randn(sum(lengths), heads, head_size, dtype=dtype)
        starts = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
        out = flash_attn_prefill(whole, *padded, starts, max(lengths), scale)
        expected = [
            attended(whole[begin:end], keys[begin:end], values[begin:end], scale)
            for begin, end in pairwise(starts.tolist())
        ]
        assert_near_norm(out, torch.cat(expected))


def test_prefill_reads_nothing_behind_a_sequence() -> None:
    """NaN and infinity in the next sequence's rows do not leak."""
    starts = torch.tensor([0, 200, 500, 777], dtype=torch.int32, device="cuda")
    query = randn(777, 32, 128, dtype=torch.bfloat16)
    key, value = randn(2, 777, 8, 128, dtype=torch.bfloat16)
    key[200:500], value[200:500] = NAN, float("inf")
    out = flash_attn_prefill(query, key, value, starts, 300, 128**-0.5)
    for begin, end in ((0, 200), (500, 777)):
        assert_near_norm(out[begin:end], attended(query[begin:end], key[begin:end], value[begin:end], 128**-0.5))


@pytest.mark.parametrize("padding", [4, 8, 16])
def test_prefill_takes_rows_that_bulk_copies_cannot(padding: int) -> None:
    """Strides off the alignment of the Hopper kernel are another kernel's, with the same result."""
    starts = torch.tensor([0, 130, 333], dtype=torch.int32, device="cuda")
    qkv = randn(333, 6 * 128 + padding, dtype=torch.float16)
    query, key, value = (x.unflatten(1, (-1, 128)) for x in qkv[:, : 6 * 128].split((512, 128, 128), dim=1))
    out = flash_attn_prefill(query, key, value, starts, 203, 128**-0.5)
    for begin, end in ((0, 130), (130, 333)):
        assert_near_norm(out[begin:end], attended(query[begin:end], key[begin:end], value[begin:end], 128**-0.5))


def test_decode_replays_from_a_graph_with_other_lengths() -> None:
    cache, table, lens, keys, values = paged([900, 900, 900], 8, 128, 16, torch.bfloat16)
    query = randn(3, 32, 128, dtype=torch.bfloat16)
    flash_attn_decode(query, cache[0], cache[1], lens, table, 4096, 128**-0.5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = flash_attn_decode(query, cache[0], cache[1], lens, table, 4096, 128**-0.5)
    for new in ([900, 1, 77], [3, 0, 900]):
        lens.copy_(torch.tensor(new))
        query.copy_(torch.randn_like(query))
        graph.replay()
        for row, length in enumerate(new):
            rows = slice(900 * row, 900 * row + length)
            if length:
                assert_near_norm(
                    out[row : row + 1], attended(query[row : row + 1], keys[rows], values[rows], 128**-0.5)
                )
            else:
                assert not out[row].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [128, 1000, None])
def test_decode_with_a_window_and_sinks_equals_its_definition_and_replays(
    window: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [900, 1, 127, 128, 129, 5000]
    cache, table, lens, keys, values = paged(lengths, 8, 64, 16, dtype)
    query, sinks = randn(6, 64, 64, dtype=dtype), 3 * randn(64, dtype=dtype)
    starts = torch.arange(7, device="cuda", dtype=torch.int32)
    begins = [0, *torch.tensor(lengths).cumsum(0).tolist()[:-1]]

    def run(num_decodes: int) -> Tensor:
        sizes = (1, 8000, 0.125, num_decodes, window, sinks)
        return flash_attn_varlen(query, cache[0], cache[1], starts, lens, table, *sizes)

    def expected(lengths: list[int]) -> Tensor:
        rows = []
        for i, (length, first) in enumerate(zip(lengths, begins, strict=True)):
            seen = (x[first : first + length].double() for x in (keys, values))
            rows.append(window_attention(query[i : i + 1].double(), *seen, 0.125, window, sinks.double()))
        return torch.cat(rows)

    for num_decodes in (6, 3, 0):
        assert_near_norm(run(num_decodes), expected(lengths))
    monkeypatch.undo()  # a fill between two kernels would be waited for
    counters, graph = torch.zeros(64, dtype=torch.int32, device="cuda"), torch.cuda.CUDAGraph()
    with torch.inference_mode(), step_graph(counters):
        run(6)
        with torch.cuda.graph(graph):
            out = run(6)
    for new in ([900, 1, 64, 65, 2, 4999], [1, 1, 1, 1, 1, 1]):
        lens.copy_(torch.tensor(new))
        graph.replay()
        assert_near_norm(out, expected(new))
        assert not counters.any()


def sorted_sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seeds: Tensor) -> Tensor:
    """The definition by a full stable sort, in float64, with the noise that the op documents."""
    scaled = logits.double() / torch.where(temperature == 0, 1.0, temperature).double()[:, None]
    ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(logits.shape[1], device=logits.device)
    ordered = ordered.masked_fill((top_k[:, None] > 0) & (ranks >= top_k[:, None]), float("-inf"))
    probs = ordered.softmax(-1)
    is_cut = (top_p[:, None] < 1) & (probs.cumsum(-1) - probs >= top_p.double()[:, None])
    gumbel = -torch.log(-torch.log(random_uniform(seeds[:, None], ids)))
    chosen = torch.where(temperature == 0, 0, (ordered.masked_fill(is_cut, float("-inf")) + gumbel).argmax(-1))
    return ids.gather(1, chosen[:, None]).squeeze(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [1021, 32000, 128256])
def test_sample_equals_the_definition_by_sorting(vocab_size: int, dtype: torch.dtype) -> None:
    num_rows = 96
    spread = torch.tensor([0.0, 0.1, 1.0, 5.0], device="cuda").repeat(num_rows // 4)[:, None]
    logits = (torch.randn(num_rows, vocab_size, device="cuda") * spread).to(dtype)
    logits[::5, ::3] = float("-inf")
    temperature = torch.tensor([0.0, 0.3, 1.0, 1.5], device="cuda")[torch.randint(0, 4, (num_rows,))]
    top_k = torch.randint(0, 100, (num_rows,), dtype=torch.int32, device="cuda")
    top_k[::3] = 0
    top_k[1::3] = torch.randint(0, vocab_size + 1, top_k[1::3].shape, device="cuda").int()
    top_p = torch.rand(num_rows, device="cuda").clamp(min=1e-3)
    top_p[::4] = 1
    rows = (temperature, top_k, top_p, torch.randint(-(2**63), 2**63 - 1, (num_rows,), device="cuda"))
    got, expected = top_k_top_p_sample(logits, *rows), sorted_sample(logits, *rows)
    # Sums and logarithms in float32 against float64: a near tie may fall to the other side.
    assert (got != expected).sum() <= 1
    assert top_k_top_p_sample(logits, *rows).equal(got)


def test_sample_follows_the_distribution() -> None:
    num_draws = 1_000_000
    logits = torch.randn(40, device="cuda")
    temperature, top_p = torch.full((2, num_draws), 0.9, device="cuda")
    top_k = torch.full((num_draws,), 30, dtype=torch.int32, device="cuda")
    seeds = torch.arange(num_draws, device="cuda") * 7919 - 11
    counts = torch.bincount(
        top_k_top_p_sample(logits.expand(num_draws, 40), temperature, top_k, top_p, seeds), minlength=40
    )
    ordered, ids = (logits.double() / 0.9).sort(descending=True)
    ordered[30:] = float("-inf")
    probs = ordered.softmax(-1)
    probs[probs.cumsum(-1) - probs >= 0.9] = 0
    expected = torch.zeros_like(probs).scatter(0, ids, probs / probs.sum()) * num_draws
    is_kept = expected > 0
    assert (counts[~is_kept] == 0).all()
    chi_squared = ((counts - expected).square() / expected)[is_kept].sum()
    # 99.999 % of chi-squared with at most 29 degrees of freedom lie below 76.
    assert chi_squared < 76


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("num_rows", [1, 2, 32])
@pytest.mark.parametrize(
    ("num_cols", "num_inputs"), [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (300, 8000), (77, 331)]
)
def test_skinny_linear_equals_its_definition(num_cols: int, num_inputs: int, num_rows: int, dtype: torch.dtype) -> None:
    x, weight = randn(num_rows, num_inputs + 8, dtype=dtype)[:, :-8], randn(num_cols, num_inputs, dtype=dtype)
    bias = randn(num_cols, dtype=dtype)
    product, terms = x.double() @ weight.double().t(), x.double().abs() @ weight.double().abs().t()
    torch.cuda.synchronize()
    for added in (None, bias):
        expected = product if added is None else product + bias.double()
        assert_rounded(skinny_linear(x, weight, added), expected, terms)
        with torch.inference_mode():
            assert_rounded(skinny_linear(x, weight, added), expected, terms)


def test_fast_linear_takes_the_skinny_way_without_gradients_alone() -> None:
    x, weight = randn(4, 4096, dtype=torch.bfloat16), randn(4096, 4096, dtype=torch.bfloat16).requires_grad_()
    assert not is_skinny(x, weight)
    assert fast_linear(x, weight, None).requires_grad
    with torch.no_grad():
        is_hopper = torch.cuda.get_device_capability()[0] >= 9
        assert is_skinny(x, weight) == is_hopper
        assert not is_skinny(x.expand(MAX_ROWS, 4, 4096).flatten(0, 1), weight)


@pytest.mark.parametrize("num_rows", [1, 32])
def test_a_graph_of_dependent_launches_gives_what_waiting_between_them_gives(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is handed on from kernel to kernel: one that wrote before its wait would spoil another's input."""
    monkeypatch.undo()  # a fill between two kernels would be waited for
    gate_up, down = (randn(n, k, dtype=torch.bfloat16) / k**0.5 for n, k in ((8192, 4096), (4096, 4096)))
    weight, x = randn(4096, dtype=torch.bfloat16), randn(num_rows, 4096, dtype=torch.bfloat16)

    def steps(wait: bool) -> Tensor:
        hidden, residual = x, x
        for _ in range(24):
            for step in range(4):
                if step == 0:
                    hidden, residual = add_rms_norm(hidden, residual, weight, 1e-5)
                else:
                    hidden = (
                        silu_and_mul(hidden) if step == 2 else fast_linear(hidden, gate_up if step == 1 else down, None)
                    )
                if wait:
                    torch.cuda.synchronize()
        return hidden

    with torch.inference_mode():
        expected = steps(wait=True).clone()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with torch.cuda.graph(graph, stream=stream):
            got = steps(wait=False)
        for _ in range(30):
            got.fill_(NAN)
            graph.replay()
            assert got.equal(expected)


class StoredStep:
    """Keys that a slow product makes, stored at each sequence's newest position and attended to at once."""

    def __init__(self, num_seqs: int, kv_heads: int, group: int, head_size: int, max_len: int) -> None:
        self.cache, self.table, self.lens, *_ = paged([max_len] * num_seqs, kv_heads, head_size, 16, torch.bfloat16)
        self.max_len, self.kv_heads, self.head_size = max_len, kv_heads, head_size
        self.slots = torch.zeros(num_seqs, dtype=torch.int64, device="cuda")
        self.x = randn(num_seqs, 4096, dtype=torch.bfloat16)
        self.query = randn(num_seqs, group * kv_heads, head_size, dtype=torch.bfloat16)
        self.weight = randn(max(28672, 2 * kv_heads * head_size), 4096, dtype=torch.bfloat16) / 64

    def set_inputs(self, lengths: list[int]) -> None:
        """Other lengths, newest positions, rows; where a newest key will be stands what no step may read."""
        self.lens.copy_(torch.tensor(lengths))
        last = (self.lens.long() - 1).clamp(min=0)
        pages = self.table.long().gather(1, (last // 16)[:, None])[:, 0]
        self.slots.copy_(torch.where(self.lens > 0, pages * 16 + last % 16, -1))
        self.cache.flatten(1, 2)[:, self.slots[self.slots >= 0]] = 1e4
        self.x.copy_(torch.randn_like(self.x))
        self.query.copy_(torch.randn_like(self.query))

    def run(self, wait: bool) -> Tensor:
        made = fast_linear(self.x, self.weight, None)[:, : 2 * self.kv_heads * self.head_size]
        key, value = (y.unflatten(1, (self.kv_heads, self.head_size)) for y in made.chunk(2, dim=1))
        if wait:
            torch.cuda.synchronize()
        store_kvcache(key, value, self.cache[0], self.cache[1], self.slots)
        if wait:
            torch.cuda.synchronize()
        return flash_attn_decode(
            self.query, self.cache[0], self.cache[1], self.lens, self.table, self.max_len, self.head_size**-0.5
        )


@pytest.mark.parametrize(
    ("num_seqs", "kv_heads", "group", "head_size", "max_len"),
    [
        (1, 8, 4, 128, 8192), (2, 8, 4, 128, 700), (17, 8, 4, 128, 700), (32, 8, 4, 128, 700), (3, 1, 12, 96, 1500),
        (5, 2, 8, 256, 900), (9, 3, 5, 33, 300), (32, 2, 1, 64, 200),
    ],
)  # fmt: skip
def test_a_step_graph_reads_ahead_what_eager_steps_read(
    num_seqs: int, kv_heads: int, group: int, head_size: int, max_len: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, whatever is in the caches of the multiprocessors, and however late the newest key is written."""
    step = StoredStep(num_seqs, kv_heads, group, head_size, max_len)
    monkeypatch.undo()  # a fill between two kernels would be waited for
    counters = torch.zeros(1024, dtype=torch.int32, device="cuda")
    rng = random.Random(0)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.inference_mode(), step_graph(counters):
        step.run(wait=False)
        with torch.cuda.graph(graph, stream=stream):
            got = step.run(wait=False)
    edges = [0, 1, 2, 16, 17, 64, 65, 128, 129, max_len]
    with torch.inference_mode():
        for _ in range(120):
            lengths = [rng.choice(edges) if rng.random() < 0.5 else rng.randrange(max_len + 1) for _ in range(num_seqs)]
            step.set_inputs([min(length, max_len) for length in lengths])
            got.fill_(NAN)
            graph.replay()
            replayed = got.clone()
            assert replayed.equal(step.run(wait=True))
            assert not counters.any()
