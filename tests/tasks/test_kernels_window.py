"""Attention kernels with windows and sinks: run by test_kernels_interpreter.py, or with TRITON_INTERPRET=1."""

from typing import NamedTuple

import pytest
import torch
from paged_batches import make_context, scattered_pages
from torch import Tensor
from turns import in_turn

from fastkernels.context import Phase
from fastkernels.env import triton_interpreted

if not triton_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1; test_kernels_interpreter.py sets it", allow_module_level=True)

from fastkernels.kernels import flash_attn_decode as decode
from fastkernels.kernels import split_attention
from fastkernels.kernels.backend import step_graph
from fastkernels.kernels.flash_attn_varlen import flash_attn_varlen
from fastkernels.tasks.baseline.L1.flash_attn_varlen import FlashAttnVarlen

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
PAGE_SIZE = 16
BATCHES = {
    "decode": ([1, 1, 1], [1, 40, 97]),
    "prefill": ([70, 3, 33], [70, 3, 33]),
    "mixed": ([1, 40, 5, 20], [90, 100, 5, 33]),
    "few": ([3, 1, 2], [70, 1, 90]),
    "decodes, then chunks": ([1, 1, 2, 1, 30], [65, 1, 2, 90, 40]),
}
MASKS = [(9, True), (9, False), (1, False), (64, True), (None, True)]
"""A window, and whether there are sinks."""
SPLITS = [(128, 256), (130, 32), (300, 64), (None, 256)]
"""A window, and the keys of a split."""
HEADS = [(8, 1, 64), (3, 3, 33), (20, 1, 16)]
ERRORS = {torch.float32: 3e-6, torch.float16: 2e-3}


class Call(NamedTuple):
    """What flash_attn_varlen is asked, and the definition's answer in float64."""

    query: Tensor
    caches: Tensor
    geometry: tuple[Tensor, Tensor, Tensor, int, int]
    window: int | None
    sinks: Tensor | None
    wanted: Tensor

    def run(self, num_decodes: int, max_seq_len: int | None = None) -> Tensor:
        *tensors, max_query_len, longest = self.geometry
        sizes = (max_query_len, max_seq_len or longest, self.query.shape[-1] ** -0.5, num_decodes)
        return flash_attn_varlen(self.query, *self.caches.unbind(0), *tensors, *sizes, self.window, self.sinks)

    def error(self, got: Tensor) -> float:
        assert torch.isfinite(got).all()
        return float((got.double() - self.wanted).abs().max() / self.wanted.abs().max())


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every torch.empty is filled with NaN: an element no kernel wrote, or one read too many, shows."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(float("nan")))


def call(
    query_lens: list[int],
    seq_lens: list[int],
    window: int | None,
    has_sinks: bool,
    dtype: torch.dtype,
    heads: tuple[int, int, int] = (6, 2, 24),
) -> Call:
    """Pages behind every window are given up: their entries are -1, and every page of nobody is NaN."""
    torch.manual_seed(3)
    num_heads, num_kv_heads, head_size = heads
    table, num_pages = scattered_pages(seq_lens, 1, PAGE_SIZE)
    owned = table[table >= 0].unique()
    caches = torch.full((2, num_pages, PAGE_SIZE, num_kv_heads, head_size), float("nan"), dtype=dtype)
    caches[:, owned] = torch.randn(2, len(owned), PAGE_SIZE, num_kv_heads, head_size).to(dtype)
    if window is not None:
        for i, (query_len, seq_len) in enumerate(zip(query_lens, seq_lens, strict=True)):
            behind = max(0, seq_len - query_len - window + 1) // PAGE_SIZE
            caches[:, table[i, :behind]] = float("nan")
            table[i, :behind] = -1
    context = make_context(query_lens, seq_lens, table.clamp(min=0), Phase.MIXED, PAGE_SIZE)
    op = FlashAttnVarlen(num_heads, head_size, head_size**-0.5, num_kv_heads, window, has_sinks)
    if op.sinks is not None:
        op.sinks.data.normal_().mul_(3)
    query = torch.randn(sum(query_lens), num_heads, head_size).to(dtype)
    geometry = (context.query_start_loc, context.seq_lens, table.int(), max(query_lens), max(seq_lens))
    sinks = None if op.sinks is None else op.sinks.data.clone()
    wanted = op.double().reference(query.double(), *caches.double().unbind(0), *geometry).detach()
    assert torch.isfinite(wanted).all()
    return Call(query, caches, geometry, window, sinks, wanted)


@pytest.mark.parametrize(("batch", "masked", "dtype"), in_turn(BATCHES, MASKS, last=[*ERRORS]))
def test_varlen_with_windows_and_sinks_equals_its_definition(
    batch: str, masked: tuple[int | None, bool], dtype: torch.dtype
) -> None:
    query_lens, seq_lens = BATCHES[batch]
    made = call(query_lens, seq_lens, *masked, dtype)
    for num_decodes in {0, next((i for i, n in enumerate(query_lens) if n > 1), len(query_lens))}:
        assert made.error(made.run(num_decodes)) <= ERRORS[dtype]


@pytest.mark.parametrize(("split", "heads", "dtype"), in_turn(SPLITS, HEADS, last=[*ERRORS]))
def test_decode_by_split_keys_with_sinks_equals_its_definition(
    split: tuple[int | None, int],
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also within a step's graph, where lengths may have grown since and the last program merges: the same bits."""
    window, split_keys = split
    monkeypatch.setattr(decode, "WINDOW_SPLIT_KEYS", split_keys)
    monkeypatch.setattr(decode, "num_sms", lambda device: 64)
    made = call([1, 1, 1, 1, 1], [1, 127, 128, 129, 420], window, True, dtype, heads)
    counters = torch.zeros(64, dtype=torch.int32)
    for max_seq_len in (420, 4000):
        got = made.run(5, max_seq_len)
        assert made.error(got) <= ERRORS[dtype]
        for given in (counters, counters[:0]):
            with step_graph(given):
                assert torch.equal(made.run(5, max_seq_len), got)
        assert not counters.any()


@pytest.mark.parametrize("window", [5, 80, None])
def test_decode_with_sinks_of_an_empty_sequence_is_zero(window: int | None) -> None:
    made = call([1, 1], [70, 1], window, True, torch.float32)
    made.geometry[1][1] = 0
    made.geometry[2][1] = -1
    for max_seq_len in (70, 9000):
        got = made.run(2, max_seq_len)
        assert not got[1].any()
        assert (got[0].double() - made.wanted[0]).abs().max() <= ERRORS[torch.float32]


def test_a_window_decides_how_many_splits_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[int] = []
    kernel = split_attention.split_kernel

    class Counted:
        def __getitem__(self, grid: tuple[int]) -> object:
            grids.append(grid[0])
            return kernel[grid]

    monkeypatch.setattr(decode, "split_kernel", Counted())
    monkeypatch.setattr(decode, "num_sms", lambda device: 64)
    for window in (128, 600, None):
        made = call([1], [40], window, True, torch.float32, (4, 1, 16))
        made.run(1, 100_000)
    assert grids == [1, 2, 32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("window", [40, 65])
def test_decode_of_a_window_reads_the_newest_position_last(
    window: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest keys and values are there from the wait on alone, in every program anew; half precision holds keys."""
    monkeypatch.setattr(decode, "num_sms", lambda device: 64)
    made = call([1, 1, 1], [70, 64, 1], window, True, dtype)
    expected = made.run(3)
    flat, table = made.caches.flatten(1, 2), made.geometry[2]
    places = torch.tensor([int(table[i, (n - 1) // 16]) * 16 + (n - 1) % 16 for i, n in enumerate((70, 64, 1))])
    kept = flat[:, places].clone()

    def unwritten(PDL: object) -> None:  # noqa: N803
        flat[:, places] = float("nan")

    def written(PDL: object) -> None:  # noqa: N803
        flat[:, places] = kept

    monkeypatch.setattr(split_attention, "let_dependents_start", unwritten)
    monkeypatch.setattr(split_attention, "wait_for_dependencies", written)
    with step_graph(torch.zeros(16, dtype=torch.int32)):
        assert torch.equal(made.run(3), expected)
