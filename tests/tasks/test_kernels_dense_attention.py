"""Attention of padded batches against a float64 definition: run by test_kernels_interpreter.py, or with
TRITON_INTERPRET=1."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import Tensor
from turns import in_turn

from fastkernels.env import triton_interpreted
from fastkernels.errors import UnsupportedError

if not triton_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1; test_kernels_interpreter.py sets it", allow_module_level=True)

from fastkernels.kernels import dense_attention as dense_attention_module
from fastkernels.kernels.ahead import TensorsOnGpu
from fastkernels.kernels.dense_attention import dense_attention, num_key_splits
from fastkernels.tasks.baseline.L1.dense_attention import DenseAttention

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
NAN = float("nan")
# float16 probabilities are rounded before they meet the values; outputs are averages of unit normals.
ABSOLUTE = {torch.float32: 2e-6, torch.float16: 1.5e-3}
HEADS = [(8, 1, 16, 16), (4, 2, 40, 24), (2, 2, 72, 72), (3, 1, 33, 50), (8, 1, 256, 256), (1, 1, 64, 128)]
"""Heads of query and of keys, and their sizes."""
LENGTHS = [(1, 0, 7), (9, 17, 5), (33, 70, 66), (20, 64, 33), (70, 0, 130), (1, 200, 1)]
"""Queries, past keys, new keys."""
KINDS = [*product(("keys", "pairs", "tiles"), ABSOLUTE)]
"""Of masks, and dtypes."""


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every torch.empty is filled with NaN, so that an element no kernel wrote, or one read too many, shows."""
    torch.manual_seed(0)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(NAN))


def strided(num_batches: int, num_tokens: int, heads: Sequence[int], size: int, dtype: torch.dtype) -> list[Tensor]:
    """Views of a wider buffer, NaN between them, as the parts of a fused qkv are."""
    buffer = torch.full((num_batches, num_tokens + 3, sum(heads) + 1, size), NAN, dtype=dtype)
    buffer[:, :num_tokens, : sum(heads)] = torch.randn(num_batches, num_tokens, sum(heads), size).to(dtype)
    return list(buffer[:, :num_tokens, : sum(heads)].split(list(heads), dim=2))


def drawn_mask(kind: str, num_batches: int, num_queries: int, num_keys: int) -> Tensor | None:
    """At least one key a query. tiles: the keys of all tiles but the one last are hidden from all queries but one."""
    if kind == "none":
        return None
    if kind == "keys":
        mask = torch.rand(num_batches, 1, num_keys) < 0.7
        mask[:, :, 0] = True
        return mask.expand(-1, num_queries, -1)
    mask = torch.rand(num_batches, num_queries, num_keys) < 0.5
    if kind == "tiles":
        mask[:, 1:, : -(-num_keys // 2)] = False
    mask[:, :, -1] = True
    return mask


def attended(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """The definition, over one part."""
    group = query.shape[2] // key.shape[2]
    k, v = (x.double().repeat_interleave(group, dim=2) for x in (key, value))
    scores = torch.einsum("bqhd,bkhd->bhqk", query.double(), k) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def assert_near(got: Tensor, expected: Tensor) -> None:
    assert torch.equal(got.isnan(), expected.isnan())
    assert (got.double() - expected).nan_to_num(0.0).abs().max() <= ABSOLUTE[got.dtype]


def check(
    heads: tuple[int, int, int, int],
    lengths: tuple[int, int, int],
    kind: str,
    dtype: torch.dtype,
    num_batches: int = 2,
    scale: float = 0.0,
) -> None:
    num_heads, num_kv_heads, size, value_size = heads
    num_queries, num_past, num_new = lengths
    [query] = strided(num_batches, num_queries, [num_heads], size, dtype)
    past_key, past_value, key, value = (
        strided(num_batches, n, [num_kv_heads], d, dtype)[0]
        for n, d in ((num_past, size), (num_past, value_size), (num_new, size), (num_new, value_size))
    )
    mask = drawn_mask(kind, num_batches, num_queries, num_past + num_new)
    scale = scale or size**-0.5
    expected = attended(query, torch.cat([past_key, key], 1), torch.cat([past_value, value], 1), scale, mask)
    assert_near(dense_attention(query, key, value, scale, mask, past_key, past_value), expected)
    if not num_past:
        assert_near(dense_attention(query, key, value, scale, mask), expected)


@pytest.mark.parametrize(("heads", "lengths", "kinds"), in_turn(HEADS, LENGTHS, last=KINDS))
def test_it_equals_its_definition(
    heads: tuple[int, int, int, int], lengths: tuple[int, int, int], kinds: tuple[str, torch.dtype]
) -> None:
    check(heads, lengths, *kinds)


@pytest.mark.parametrize(("heads", "lengths", "dtype"), in_turn(HEADS[:4], LENGTHS, last=[*ABSOLUTE]))
def test_without_a_mask_all_keys_take_part(
    heads: tuple[int, int, int, int], lengths: tuple[int, int, int], dtype: torch.dtype
) -> None:
    check(heads, lengths, "none", dtype, num_batches=1, scale=0.2)


@pytest.mark.parametrize("num_sms", [1, 12, 1000])
@pytest.mark.parametrize("kind", ["keys", "tiles"])
def test_any_number_of_splits_gives_the_same(num_sms: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def counted(*arguments: int) -> int:
        counts.append(num_key_splits(*arguments))
        return counts[-1]

    monkeypatch.setattr(dense_attention_module, "num_sms", lambda device: num_sms)
    monkeypatch.setattr(dense_attention_module, "num_key_splits", counted)
    for lengths in ((7, 300, 51), (3, 0, 333), (9, 31, 300), (2, 640, 0)):
        check((4, 1, 16, 16), lengths, kind, torch.float32, num_batches=1)
        check((4, 1, 16, 24), lengths, kind, torch.float16, num_batches=1)
    assert (max(counts) > 1) == (num_sms > 1)
    assert max(counts) > 6 or num_sms < 1000


@pytest.mark.parametrize("num_sms", [1, 1000])
def test_a_query_that_sees_no_key_gets_nan_and_no_other_does(num_sms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_attention_module, "num_sms", lambda device: num_sms)
    query, key, value = torch.randn(2, 5, 2, 16), torch.randn(2, 300, 1, 16), torch.randn(2, 300, 1, 16)
    mask = torch.ones(2, 5, 300, dtype=torch.bool)
    mask[0, 3] = mask[1, 0] = False
    out = dense_attention(query, key, value, 0.25, mask)
    assert_near(out, attended(query, key, value, 0.25, mask))
    assert out.isnan().any(-1).any(-1).nonzero().tolist() == [[0, 3], [1, 0]]


def test_masks_may_have_any_strides() -> None:
    query, key, value = torch.randn(3, 6, 2, 16), torch.randn(3, 50, 1, 16), torch.randn(3, 50, 1, 16)
    wide = torch.rand(50, 8, 3) < 0.5
    wide[0] = True
    for mask in (wide.permute(2, 1, 0)[:, :6], wide.permute(2, 1, 0)[:1, 1:7].expand(3, -1, -1)):
        assert_near(dense_attention(query, key, value, 0.25, mask), attended(query, key, value, 0.25, mask))


def test_the_op_launches_it_for_what_is_on_a_gpu() -> None:
    op = DenseAttention(4, 16, num_kv_heads=1, value_head_size=24)
    query, key, value = (torch.randn(2, n, heads, d).half() for n, heads, d in ((7, 4, 16), (5, 1, 16), (5, 1, 24)))
    past = [torch.randn(2, 90, 1, d).half() for d in (16, 24)]
    mask = drawn_mask("pairs", 2, 7, 95)
    expected = op.reference(query, key, value, mask, *past)
    with TensorsOnGpu():
        assert_near(op(query, key, value, mask, *past), expected.double())


def test_of_nothing_is_nothing() -> None:
    key = torch.randn(2, 5, 1, 16)
    assert dense_attention(torch.randn(2, 0, 4, 16), key, key, 1.0).shape == (2, 0, 4, 16)
    assert dense_attention(torch.randn(0, 3, 4, 16), key[:0], key[:0], 1.0).shape == (0, 3, 4, 16)


def test_it_refuses_what_it_lacks_and_names_it() -> None:
    def call(num_heads: int, num_kv_heads: int, size: int, dtype: torch.dtype = torch.float32) -> None:
        key = torch.randn(1, 2, num_kv_heads, size, dtype=dtype)
        dense_attention(torch.randn(1, 2, num_heads, size, dtype=dtype), key, key, 1.0)

    with pytest.raises(UnsupportedError, match=r"at most 256.*288"):
        call(2, 2, 288)
    with pytest.raises(UnsupportedError, match="at most 64 of query to one"):
        call(5, 2, 16)
    with pytest.raises(UnsupportedError, match="at most 64 of query to one"):
        call(128, 1, 16)
    with pytest.raises(UnsupportedError, match="float64"):
        call(2, 2, 16, torch.float64)
    key = torch.randn(1, 2, 1, 16)
    with pytest.raises(UnsupportedError, match="one dtype"):
        dense_attention(torch.randn(1, 2, 1, 16).half(), key, key, 1.0)
