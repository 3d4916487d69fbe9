"""Attention kernels against a float64 definition: run by test_kernels_interpreter.py, or with TRITON_INTERPRET=1."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from turns import in_turn

from fastkernels.env import triton_interpreted
from fastkernels.errors import UnsupportedError

if not triton_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1; test_kernels_interpreter.py sets it", allow_module_level=True)

from fastkernels.kernels import flash_attn_decode as flash_attn_decode_module
from fastkernels.kernels import split_attention
from fastkernels.kernels.backend import may_read_earlier_steps, step_counters, step_graph
from fastkernels.kernels.flash_attn_decode import flash_attn_decode
from fastkernels.kernels.flash_attn_prefill import flash_attn_prefill
from fastkernels.kernels.flash_attn_varlen import flash_attn_varlen

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
NAN = float("nan")
# float16 probabilities are rounded before they meet the values; outputs are averages of unit normals.
ABSOLUTE = {torch.float32: 2e-6, torch.float16: 1.5e-3}
HEADS = [(8, 2, 64), (3, 1, 80), (2, 2, 96), (7, 1, 16), (2, 2, 256), (20, 1, 33)]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every torch.empty is filled with NaN, so that an element no kernel wrote, or one read too many, shows."""
    torch.manual_seed(0)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(NAN))


def attended(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The definition: [query_len, num_heads, head_size] over [seq_len, num_kv_heads, head_size], causal."""
    group = query.shape[1] // key.shape[1]
    k, v = (x.double().repeat_interleave(group, dim=1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.double(), k) * scale
    query_len, seq_len = scores.shape[1:]
    is_seen = torch.arange(seq_len)[None] <= torch.arange(seq_len - query_len, seq_len)[:, None]
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~is_seen, float("-inf")).softmax(-1), v)


def assert_near(got: Tensor, expected: Tensor) -> None:
    assert not got.isnan().any()
    assert (got.double() - expected).abs().max() <= ABSOLUTE[got.dtype]


def strided(num_rows: int, num_heads: int, head_size: int, dtype: torch.dtype) -> Tensor:
    """Rows of a wider NaN-filled buffer, as a query inside a fused qkv is."""
    buffer = torch.full((num_rows, num_heads * head_size + 8), NAN, dtype=dtype)
    buffer[:, : num_heads * head_size] = torch.randn(num_rows, num_heads * head_size).to(dtype)
    return buffer[:, : num_heads * head_size].unflatten(1, (num_heads, head_size))


@dataclass
class Paged:
    """Sequences scattered over pages: what lies in no sequence is NaN, entries past a sequence's end are -1."""

    cache: Tensor
    block_table: Tensor
    seq_lens: Tensor
    keys: list[Tensor]
    values: list[Tensor]


def paged(lengths: list[int], num_heads: int, head_size: int, page_size: int, dtype: torch.dtype) -> Paged:
    num_pages = [-(-length // page_size) for length in lengths]
    cache = torch.full((2, sum(num_pages) + 3, page_size, num_heads, head_size), NAN, dtype=dtype)
    table = torch.full((len(lengths), max(num_pages) + 2), -1, dtype=torch.int32)
    free = torch.randperm(cache.shape[1]).tolist()
    keys, values = [], []
    for row, length in enumerate(lengths):
        both = torch.randn(2, length, num_heads, head_size).to(dtype)
        for page in range(num_pages[row]):
            table[row, page] = free.pop()
            part = both[:, page * page_size : (page + 1) * page_size]
            cache[:, table[row, page], : part.shape[1]] = part
        keys.append(both[0])
        values.append(both[1])
    return Paged(cache, table, torch.tensor(lengths, dtype=torch.int32), keys, values)


@pytest.mark.parametrize(("heads", "page_size", "dtype"), in_turn(HEADS, [1, 16], last=[*ABSOLUTE]))
def test_decode_equals_its_definition(heads: tuple[int, int, int], page_size: int, dtype: torch.dtype) -> None:
    num_heads, num_kv_heads, head_size = heads
    lengths = [1, 37, 130, 0]
    batch = paged(lengths, num_kv_heads, head_size, page_size, dtype)
    query, scale = strided(4, num_heads, head_size, dtype), head_size**-0.5
    before = batch.cache.clone()
    for max_seq_len in (130, 4000):
        out = flash_attn_decode(query, *batch.cache, batch.seq_lens, batch.block_table, max_seq_len, scale)
        for row, length in enumerate(lengths):
            expected = torch.zeros(1, num_heads, head_size).double()
            if length:
                expected = attended(query[row : row + 1], batch.keys[row], batch.values[row], scale)
            assert_near(out[row : row + 1], expected)
    assert torch.equal(batch.cache.nan_to_num(9.0), before.nan_to_num(9.0))


def test_decode_of_one_long_sequence_merges_many_splits() -> None:
    batch = paged([1777], 1, 64, 16, torch.float32)
    query = torch.randn(1, 4, 64)
    out = flash_attn_decode(query, *batch.cache, batch.seq_lens, batch.block_table, 1777, 0.3)
    assert_near(out, attended(query, batch.keys[0], batch.values[0], 0.3))


def test_decode_reads_caches_with_heads_outermost() -> None:
    batch = paged([40, 9], 3, 16, 4, torch.float32)
    heads_first = batch.cache.transpose(2, 3).contiguous().transpose(2, 3)
    query = torch.randn(2, 6, 16)
    out = flash_attn_decode(query, *heads_first, batch.seq_lens, batch.block_table, 40, 0.25)
    for row in range(2):
        assert_near(out[row : row + 1], attended(query[row : row + 1], batch.keys[row], batch.values[row], 0.25))


@pytest.mark.parametrize(("heads", "dtype"), in_turn(HEADS, last=[*ABSOLUTE]))
def test_decode_in_a_step_graph_gives_the_same_bits_and_leaves_its_counters_zero(
    heads: tuple[int, int, int], dtype: torch.dtype
) -> None:
    num_heads, num_kv_heads, head_size = heads
    lengths = [1, 37, 64, 0, 65, 130, 129]
    batch = paged(lengths, num_kv_heads, head_size, 16, dtype)
    query, counters = strided(7, num_heads, head_size, dtype), torch.zeros(64, dtype=torch.int32)
    for rows in (slice(0, 1), slice(1, 2), slice(5, 6), slice(0, 7)):
        for max_seq_len in (130, 4000):
            arguments = (batch.seq_lens[rows], batch.block_table[rows], max_seq_len, head_size**-0.5)
            expected = flash_attn_decode(query[rows], *batch.cache, *arguments)
            for given in (counters, counters[:0]):
                with step_graph(given):
                    out = flash_attn_decode(query[rows], *batch.cache, *arguments)
                assert torch.equal(out, expected)
            assert not counters.any()


@pytest.mark.parametrize("tile", [(16, 6, 0), (16, 6, 16), (32, 4, 0)])
def test_sequences_of_unlike_lengths_take_as_many_splits_as_they_have_room_for(
    tile: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 6 splits of 3 steps at least the longest takes 6, and the shortest one."""
    block_n, num_splits, held = tile
    lengths = [400, 97, 1, 96, 48, 0, 49]
    batch = paged(lengths, 2, 32, 16, torch.float32)
    query, counters = torch.randn(7, 4, 32), torch.zeros(64, dtype=torch.int32)
    chosen = flash_attn_decode_module.DecodeTile(block_n, num_splits, 4, 2, held, least_steps=3)
    monkeypatch.setattr(flash_attn_decode_module, "decode_tile", lambda *_: chosen)
    arguments = (query, *batch.cache, batch.seq_lens, batch.block_table, 400, 0.2)
    outs = [flash_attn_decode(*arguments)]
    with step_graph(counters):
        outs.append(flash_attn_decode(*arguments))
    assert torch.equal(outs[0], outs[1])
    assert not counters.any()
    for row, length in enumerate(lengths):
        expected = torch.zeros(1, 4, 32).double()
        if length:
            expected = attended(query[row : row + 1], batch.keys[row], batch.values[row], 0.2)
        assert_near(outs[0][row : row + 1], expected)


def test_decode_in_a_step_graph_reads_the_newest_position_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest keys and values are there from the wait on alone, in every program anew."""
    batch = paged([70, 64, 1], 1, 16, 16, torch.float32)
    query = torch.randn(3, 2, 16)
    newest = batch.cache.flatten(1, 2)
    places = torch.tensor([batch.block_table[i, (n - 1) // 16] * 16 + (n - 1) % 16 for i, n in enumerate((70, 64, 1))])
    arguments = (batch.seq_lens, batch.block_table, 70, 0.25)
    expected = flash_attn_decode(query, *batch.cache, *arguments)
    kept = newest[:, places].clone()

    def unwritten(PDL: object) -> None:  # noqa: N803
        newest[:, places] = NAN

    def written(PDL: object) -> None:  # noqa: N803
        newest[:, places] = kept

    monkeypatch.setattr(split_attention, "let_dependents_start", unwritten)
    monkeypatch.setattr(split_attention, "wait_for_dependencies", written)
    with step_graph(torch.zeros(16, dtype=torch.int32)):
        out = flash_attn_decode(query, *batch.cache, *arguments)
    assert torch.equal(out, expected)


def test_only_a_step_graph_permits_reading_ahead_and_steps_do_not_nest() -> None:
    counters = torch.zeros(4, dtype=torch.int32)
    assert not may_read_earlier_steps()
    assert step_counters(1) is None
    with step_graph(counters):
        assert may_read_earlier_steps()
        assert step_counters(4) is counters
        assert step_counters(5) is None
        with pytest.raises(RuntimeError, match="do not nest"), step_graph(counters):
            pass
        assert may_read_earlier_steps()
    assert not may_read_earlier_steps()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_size"), HEADS)
def test_prefill_equals_its_definition(num_heads: int, num_kv_heads: int, head_size: int, dtype: torch.dtype) -> None:
    lengths = [1, 33, 0, 80]
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    num_tokens = sum(lengths)
    query = strided(num_tokens + 2, num_heads, head_size, dtype)
    key, value = (strided(num_tokens + 2, num_kv_heads, head_size, dtype) for _ in range(2))
    for x in (query, key, value):
        x[num_tokens:] = NAN
    scale = head_size**-0.5
    out = flash_attn_prefill(query, key, value, starts, 80, scale)
    for begin, end in pairwise(starts.tolist()):
        if begin < end:
            assert_near(out[begin:end], attended(query[begin:end], key[begin:end], value[begin:end], scale))


@pytest.mark.parametrize(("heads", "page_size", "dtype"), in_turn(HEADS[:4], [7, 16], last=[*ABSOLUTE]))
def test_varlen_mixes_chunks_and_single_tokens(heads: tuple[int, int, int], page_size: int, dtype: torch.dtype) -> None:
    num_heads, num_kv_heads, head_size = heads
    lengths, new = [1, 37, 100, 0, 40, 90], [1, 37, 1, 0, 3, 61]
    batch = paged(lengths, num_kv_heads, head_size, page_size, dtype)
    starts = torch.tensor([0, *new]).cumsum(0).int()
    query, scale = strided(sum(new), num_heads, head_size, dtype), head_size**-0.5
    out = flash_attn_varlen(
        query, *batch.cache, starts, batch.seq_lens, batch.block_table, max(new), max(lengths), scale
    )
    for row in range(len(lengths)):
        rows = slice(starts[row], starts[row + 1])
        if new[row]:
            assert_near(out[rows], attended(query[rows], batch.keys[row], batch.values[row], scale))


@pytest.mark.parametrize("new", [[2, 2], [3, 1], [50, 50], [50]])
def test_varlen_of_uniform_or_short_chunks_equals_its_definition(new: list[int]) -> None:
    lengths = [130, 61][: len(new)]
    batch = paged(lengths, 2, 64, 16, torch.float32)
    starts = torch.tensor([0, *new]).cumsum(0).int()
    query = torch.randn(sum(new), 8, 64)
    out = flash_attn_varlen(query, *batch.cache, starts, batch.seq_lens, batch.block_table, max(new), 130, 0.125)
    for row in range(len(new)):
        rows = slice(starts[row], starts[row + 1])
        assert_near(out[rows], attended(query[rows], batch.keys[row], batch.values[row], 0.125))


@pytest.mark.parametrize("num_decodes", [0, 1, 3])
@pytest.mark.parametrize("later", [[], [33], [1, 2], [40, 40]])
def test_varlen_with_single_tokens_at_the_front_equals_its_definition(num_decodes: int, later: list[int]) -> None:
    new, lengths = [1, 1, 1, *later], [130, 1, 61, 90, 45][: 3 + len(later)]
    batch = paged(lengths, 2, 64, 16, torch.float32)
    starts = torch.tensor([0, *new]).cumsum(0).int()
    query = torch.randn(sum(new), 8, 64)
    lens = (batch.seq_lens, batch.block_table, max(new), 130)
    out = flash_attn_varlen(query, *batch.cache, starts, *lens, 0.125, num_decodes)
    for row in range(len(new)):
        rows = slice(starts[row], starts[row + 1])
        assert_near(out[rows], attended(query[rows], batch.keys[row], batch.values[row], 0.125))


def test_attention_of_no_tokens_is_empty() -> None:
    cache, table = torch.randn(2, 3, 4, 2, 16), torch.zeros(0, 3, dtype=torch.int32)
    lens, starts = torch.zeros(0, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    empty = torch.randn(0, 4, 16)
    assert flash_attn_decode(empty, *cache, lens, table, 0, 1.0).shape == (0, 4, 16)
    assert flash_attn_varlen(empty, *cache, starts, lens, table, 0, 0, 1.0).shape == (0, 4, 16)
    assert flash_attn_prefill(empty, *torch.randn(2, 0, 2, 16), starts, 0, 1.0).shape == (0, 4, 16)


def test_attention_refuses_what_it_lacks_and_names_it() -> None:
    starts = torch.tensor([0, 2], dtype=torch.int32)

    def prefill(num_heads: int, num_kv_heads: int, head_size: int, scale: float = 1.0) -> None:
        key = torch.randn(2, num_kv_heads, head_size)
        flash_attn_prefill(torch.randn(2, num_heads, head_size), key, key, starts, 2, scale)

    with pytest.raises(UnsupportedError, match=r"at most 256.*got query 288"):
        prefill(2, 2, 288)
    with pytest.raises(UnsupportedError, match="got 5 query heads over 2 key heads"):
        prefill(5, 2, 16)
    with pytest.raises(UnsupportedError, match="at most 64"):
        prefill(128, 1, 16)
    with pytest.raises(UnsupportedError, match="scale over 0, got 0"):
        prefill(2, 2, 16, 0.0)
    with pytest.raises(UnsupportedError, match="float64"):
        flash_attn_prefill(*torch.randn(3, 2, 1, 16).double(), starts, 2, 1.0)
