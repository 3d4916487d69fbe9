"""Definitions against other people's: torch's own functions, transformers, complex numbers, brute force."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from paged_batches import PAGE_SIZE, scattered_pages
from plain_noise import gumbel
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.qwen3_next.modeling_qwen3_next import l2norm

from fastkernels.context import ForwardContext, Phase, reference_mode, set_forward_context
from fastkernels.errors import UnsupportedError
from fastkernels.tasks.baseline.L1.embedding import Embedding
from fastkernels.tasks.baseline.L1.flash_attn_decode import FlashAttnDecode
from fastkernels.tasks.baseline.L1.flash_attn_prefill import FlashAttnPrefill
from fastkernels.tasks.baseline.L1.flash_attn_varlen import FlashAttnVarlen
from fastkernels.tasks.baseline.L1.greedy_sample import GreedySample
from fastkernels.tasks.baseline.L1.l2_norm import L2Norm
from fastkernels.tasks.baseline.L1.linear import Linear
from fastkernels.tasks.baseline.L1.rms_norm import RMSNorm
from fastkernels.tasks.baseline.L1.rotary_emb import RotaryEmbedding
from fastkernels.tasks.baseline.L1.silu_and_mul import SiluAndMul
from fastkernels.tasks.baseline.L1.spmm import SpMM
from fastkernels.tasks.baseline.L1.store_kvcache import StoreKVCache
from fastkernels.tasks.baseline.L1.top_k_top_p_sample import TopKTopPSample
from fastkernels.tasks.baseline.L2.attention import Attention
from fastkernels.tasks.baseline.L2.llama_mlp import LlamaMLP
from fastkernels.tasks.baseline.L2.parallel_linear import RowParallelLinear
from fastkernels.tasks.baseline.rotary_table import inverse_frequencies
from fastkernels.tasks.configs.rope import RopeScaling


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rms_norm_equals_torch() -> None:
    op = RMSNorm(37, eps=1e-5).double()
    op.weight.data.normal_()
    x, residual = randn(4, 37), randn(4, 37, seed=1)
    torch.testing.assert_close(op(x), functional.rms_norm(x, (37,), op.weight, 1e-5))
    y, h = op(x, residual)
    assert torch.equal(h, x + residual)
    torch.testing.assert_close(y, functional.rms_norm(h, (37,), op.weight, 1e-5))


def test_silu_and_mul_equals_torch() -> None:
    x = randn(3, 5, 26)
    torch.testing.assert_close(SiluAndMul()(x), functional.silu(x[..., :13]) * x[..., 13:])


def test_rotary_embedding_neox_equals_transformers() -> None:
    scaling = RopeScaling(8.0, 1.0, 4.0, 64)
    op = RotaryEmbedding(16, 16, 512, 10000.0, rope_scaling=scaling).double()
    positions = torch.tensor([0, 1, 63, 64, 511])
    query, key = randn(5, 4, 16), randn(5, 2, 16, seed=1)
    angles = torch.outer(positions.double(), inverse_frequencies(16, 10000.0, scaling)).repeat(1, 2)
    expected = apply_rotary_pos_emb(
        query.transpose(0, 1)[None], key.transpose(0, 1)[None], angles.cos()[None], angles.sin()[None]
    )
    for got, want in zip(op(positions, query, key), expected, strict=True):
        torch.testing.assert_close(got, want[0].transpose(0, 1))


def test_rotary_embedding_of_interleaved_pairs_is_multiplication_by_a_complex_number() -> None:
    op = RotaryEmbedding(10, 6, 97, 500000.0, is_neox_style=False).double()
    positions, query = torch.tensor([0, 5, 96]), randn(3, 7, 10)
    turn = torch.exp(1j * torch.outer(positions.double(), inverse_frequencies(6, 500000.0, None)))
    turned = torch.view_as_complex(query[..., :6].unflatten(-1, (3, 2)).contiguous()) * turn[:, None]
    expected = torch.cat((torch.view_as_real(turned).flatten(-2), query[..., 6:]), dim=-1)
    got, no_key = op(positions, query)
    assert no_key is None
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(op(positions, query.flatten(1))[0], expected.flatten(1))


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 2), (7, 1), (3, 3)])
def test_attention_ops_equal_torch_over_scattered_pages(num_heads: int, num_kv_heads: int) -> None:
    head_size, scale = 16, 0.3
    query_lens, seq_lens = [1, 7, 20, 1], [34, 40, 20, 1]
    pages, num_pages = scattered_pages(seq_lens, seed=4)
    caches = torch.full((2, num_pages, PAGE_SIZE, num_kv_heads, head_size), float("nan"), dtype=torch.float64)
    query = randn(sum(query_lens), num_heads, head_size)
    parts = [(randn(n, num_kv_heads, head_size, seed=n), randn(n, num_kv_heads, head_size, seed=-n)) for n in seq_lens]
    expected = []
    for i, (n, total) in enumerate(zip(query_lens, seq_lens, strict=True)):
        for token in range(total):
            page, offset = pages[i, token // PAGE_SIZE], token % PAGE_SIZE
            caches[0, page, offset], caches[1, page, offset] = parts[i][0][token], parts[i][1][token]
        q = query[sum(query_lens[:i]) :][:n]
        mask = torch.ones(n, total, dtype=torch.bool).tril(total - n)
        k, v = (x.repeat_interleave(num_heads // num_kv_heads, dim=1).transpose(0, 1) for x in parts[i])
        out = functional.scaled_dot_product_attention(q.transpose(0, 1), k, v, attn_mask=mask, scale=scale)
        expected.append(out.transpose(0, 1))
    lens, table = torch.tensor(seq_lens, dtype=torch.int32), pages.int()
    starts = torch.tensor([0, *query_lens]).cumsum(0).int()
    varlen = FlashAttnVarlen(num_heads, head_size, scale, num_kv_heads)
    torch.testing.assert_close(varlen(query, *caches, starts, lens, table, 20, 40), torch.cat(expected))
    decode = FlashAttnDecode(num_heads, head_size, scale, num_kv_heads)
    last = query[starts[1:].long() - 1]
    torch.testing.assert_close(decode(last, *caches, lens, table, 40), torch.cat([out[-1:] for out in expected]))
    prefill = FlashAttnPrefill(num_heads, head_size, scale, num_kv_heads)
    fresh = torch.tensor([0, 20], dtype=torch.int32)
    torch.testing.assert_close(prefill(query[8:28], *parts[2], fresh, 20), expected[2])


def test_decode_of_an_empty_sequence_gives_zeros() -> None:
    op = FlashAttnDecode(2, 16, 0.25, 1)
    cache = torch.full((1, PAGE_SIZE, 1, 16), float("nan"))
    lens, table = torch.tensor([0], dtype=torch.int32), torch.tensor([[-1]], dtype=torch.int32)
    assert torch.equal(op(torch.ones(1, 2, 16), cache, cache, lens, table, 0), torch.zeros(1, 2, 16))


def test_long_queries_are_computed_in_blocks_with_the_same_result() -> None:
    op = FlashAttnPrefill(2, 16, 0.25, 1)
    query, key, value = randn(1100, 2, 16), randn(1100, 1, 16, seed=1), randn(1100, 1, 16, seed=2)
    got = op(query, key, value, torch.tensor([0, 1100], dtype=torch.int32), 1100)
    q, k, v = (x.transpose(0, 1) for x in (query, key.expand(-1, 2, -1), value.expand(-1, 2, -1)))
    expected = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.25)
    torch.testing.assert_close(got, expected.transpose(0, 1))


def test_store_kvcache_writes_slots_and_skips_minus_one() -> None:
    key, value = randn(4, 2, 8), randn(4, 2, 8, seed=1)
    caches = torch.zeros(2, 3, 5, 2, 8, dtype=torch.float64)
    StoreKVCache()(key, value, caches[0], caches[1], torch.tensor([14, -1, 0, 7]))
    flat = caches.flatten(1, 2)
    for token, slot in ((0, 14), (2, 0), (3, 7)):
        assert torch.equal(flat[0, slot], key[token])
        assert torch.equal(flat[1, slot], value[token])
    assert (flat.flatten(2) != 0).any(-1).sum() == 6


def test_greedy_sample_takes_the_largest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [-1.0, -3.0, -2.0]])
    assert GreedySample()(logits).tolist() == [1, 0]


def sample(logits: list[float], num_draws: int, temperature: float, top_k: int, top_p: float) -> Tensor:
    rows = torch.tensor([logits]).expand(num_draws, -1)
    ids = TopKTopPSample()(
        rows,
        torch.full((num_draws,), temperature),
        torch.full((num_draws,), top_k, dtype=torch.int32),
        torch.full((num_draws,), top_p),
        torch.arange(num_draws) * 1_000_003,
    )
    return torch.bincount(ids, minlength=len(logits)) / num_draws


PROBS = torch.tensor([0.1, 0.5, 0.4])


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "kept"),
    [
        (1.0, 0, 1.0, [0, 1, 2]),
        (0.5, 0, 1.0, [0, 1, 2]),
        (1.0, 2, 1.0, [1, 2]),
        (1.0, 1, 1.0, [1]),
        (1.0, 0, 0.4, [1]),
        (1.0, 0, 0.6, [1, 2]),  # the second token crosses 0.6 and stays
        (1.0, 0, 0.95, [0, 1, 2]),
        (1.0, 2, 0.5, [1]),  # after top-k the first has 0.556 of the mass
        (2.0, 0, 0.3, [1]),
    ],
)
def test_sampled_frequencies_are_those_of_the_nucleus(
    temperature: float, top_k: int, top_p: float, kept: list[int]
) -> None:
    num_draws = 40_000
    expected = torch.zeros(3).scatter(0, torch.tensor(kept), PROBS[kept] ** (1 / temperature))
    expected /= expected.sum()
    got = sample(PROBS.log().tolist(), num_draws, temperature, top_k, top_p)
    sigma = (expected * (1 - expected) / num_draws).sqrt()
    assert ((got - expected).abs() <= 4.5 * sigma).all()
    assert (got[expected == 0] == 0).all()


def test_temperature_zero_is_greedy() -> None:
    assert sample([1.0, 1.5, 1.25], 200, 0.0, 0, 1.0).tolist() == [0.0, 1.0, 0.0]


def test_a_seed_gives_the_same_token_in_any_batch() -> None:
    logits = randn(64, 1021).float()
    seeds = torch.arange(64) - 32
    arguments = (torch.full((64,), 0.8), torch.full((64,), 50, dtype=torch.int32), torch.full((64,), 0.9), seeds)
    ids = TopKTopPSample()(logits, *arguments)
    order = torch.randperm(64)
    assert torch.equal(TopKTopPSample()(logits[order], *(a[order] for a in arguments)), ids[order])
    assert torch.equal(torch.cat([TopKTopPSample()(logits[i : i + 1], *(a[i : i + 1] for a in arguments))
                                  for i in range(64)]), ids)  # fmt: skip
    assert not torch.equal(TopKTopPSample()(logits, *arguments[:3], seeds + 1), ids)


def test_the_draw_is_the_gumbel_max_of_the_seed_and_the_token_id() -> None:
    logits = randn(40, 17).float()
    seeds = [row * 77_777_777_777 - 10**12 for row in range(40)]
    ids = TopKTopPSample()(logits, torch.full((40,), 0.5), torch.zeros(40).int(), torch.ones(40), torch.tensor(seeds))
    for row, seed in enumerate(seeds):
        scores = [2 * logit + gumbel(seed, token) for token, logit in enumerate(logits[row].tolist())]
        assert int(ids[row]) == scores.index(max(scores))


def context_of(phase: Phase) -> ForwardContext:
    one = torch.tensor([1], dtype=torch.int32)
    starts, table = torch.tensor([0, 1], dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32)
    return ForwardContext(starts, one, table, torch.tensor([0]), 1, 1, phase)


def test_bad_inputs_are_refused_with_value_and_limit() -> None:
    ones = torch.ones
    starts = torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"input_size 8, got x of shape \(2, 7\)"):
        Linear(8, 3)(ones(2, 7))
    with pytest.raises(ValueError, match=r"hidden_size 8, got x of shape \(2, 7\)"):
        RMSNorm(8)(ones(2, 7))
    with pytest.raises(ValueError, match=r"two halves, got x of shape \(2, 7\)"):
        SiluAndMul()(ones(2, 7))
    with pytest.raises(ValueError, match=r"got torch.float32"):
        Embedding(8, 4)(ones(3))
    with pytest.raises(ValueError, match=r"head_size 16 and got 3 positions.*\(3, 24\)"):
        RotaryEmbedding(16, 16, 32, 1e4)(torch.arange(3), ones(3, 24))
    with pytest.raises(ValueError, match=r"in \[2, head_size 16\], got 18"):
        RotaryEmbedding(16, 18, 32, 1e4)
    with pytest.raises(ValueError, match=r"query must end in \[2, 16\].*\(3, 2, 8\)"):
        FlashAttnPrefill(2, 16, 1.0, 1)(ones(3, 2, 8), ones(3, 1, 16), ones(3, 1, 16), starts, 3)
    with pytest.raises(ValueError, match="num_heads 3 is no multiple of num_kv_heads 2"):
        FlashAttnVarlen(3, 16, 1.0, 2)
    half = ones(1, 16, 1, 8, dtype=torch.float16)
    with pytest.raises(UnsupportedError, match=r"torch.float32, key_cache torch.float16"):
        StoreKVCache()(ones(1, 1, 8), ones(1, 1, 8), half, half, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"top_p must be \[2\], got \(3,\)"):
        TopKTopPSample()(ones(2, 5), ones(2), ones(2).int(), ones(3), ones(2).long())
    with pytest.raises(UnsupportedError, match="not hidden_act 'gelu'"):
        LlamaMLP(8, 16, "gelu")
    with pytest.raises(UnsupportedError, match="quant_config must be None, got 'fp8'"):
        RowParallelLinear(8, 16, quant_config="fp8")  # type: ignore[arg-type]
    attention = Attention(2, 16, 0.25, 1)
    with pytest.raises(RuntimeError, match="set_forward_context"):
        attention(ones(1, 32), ones(1, 16), ones(1, 16))
    with set_forward_context(context_of(Phase.DECODE)), pytest.raises(UnsupportedError, match="no kv_cache bound"):
        attention(ones(1, 32), ones(1, 16), ones(1, 16))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("counts", [[0, 3000, 1, 0, 17], [40], [0, 0]])
@pytest.mark.parametrize("dim", [13, 0])
def test_spmm_on_a_cpu_is_its_definition(counts: list[int], dim: int, dtype: torch.dtype) -> None:
    """Columns in any order, some of them twice in a row."""
    starts = torch.tensor([0, *counts]).cumsum(0)
    cols = torch.randint(7, (sum(counts),), generator=torch.Generator().manual_seed(1))
    values, x = randn(len(cols)).to(dtype), randn(7, dim, seed=1).to(dtype)
    with reference_mode():
        defined = SpMM()(starts, cols, values, x)
    given = SpMM()(starts, cols, values, x)
    atol = {torch.float64: 1e-12, torch.float32: 2e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}[dtype]
    torch.testing.assert_close(given, defined, atol=atol, rtol=torch.finfo(dtype).eps)


def test_spmm_on_a_cpu_warns_nobody() -> None:
    program = """
import torch
from fastkernels.tasks.baseline.L1.spmm import SpMM
print(SpMM()(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), torch.ones(1, 2)).tolist())
"""
    run = subprocess.run([sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, timeout=120)
    assert (run.stdout, run.stderr) == ("[[1.0, 1.0]]\n", "")


def test_l2_norm_with_eps_in_the_root_is_the_published_one_of_short_rows() -> None:
    x = functional.normalize(randn(5, 64), dim=-1) * torch.logspace(-4, 0, 5)[:, None]
    published = l2norm(x, dim=-1, eps=1e-6)
    torch.testing.assert_close(L2Norm(1e-6, is_eps_in_root=True).reference(x), published)
    assert (L2Norm(1e-6).reference(x) - published).abs().max() > 0.1
