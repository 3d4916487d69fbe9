"""Vision towers' kernels against float64 definitions: run by test_kernels_interpreter.py or with TRITON_INTERPRET=1."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fastkernels.env import triton_interpreted
from fastkernels.errors import UnsupportedError

if not triton_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1; test_kernels_interpreter.py sets it", allow_module_level=True)

from fastkernels.kernels.flash_attn_prefill import flash_attn_prefill
from fastkernels.kernels.quickgelu import quickgelu
from fastkernels.kernels.rotary_emb import rotary_embedding
from fastkernels.kernels.vjepa2_rope import vjepa2_rope
from fastkernels.tasks.baseline.L1.mrope import MRotaryEmbedding
from fastkernels.tasks.baseline.L1.vision_rotary_emb import VisionRotaryEmbedding
from fastkernels.tasks.baseline.L1.vjepa2_rope import VJEPA2Rope, _inverse

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
DTYPES = [torch.float32, torch.float16]


def rounding(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every torch.empty of floats is filled with NaN, so that an element no kernel wrote shows."""
    torch.manual_seed(0)
    empty = torch.empty

    def fill(x: Tensor) -> Tensor:
        return x.fill_(float("nan")) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: fill(empty(*args, **kwargs)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("d", [1, 64, 257, 5120])
def test_quickgelu_equals_its_definition(d: int, dtype: torch.dtype) -> None:
    x = (torch.randn(3, d + 5) * 4).to(dtype)[:, :d]
    expected = x.double() * torch.sigmoid(1.702 * x.double())
    error = (quickgelu(x).double() - expected).abs()
    assert bool((error <= expected.abs() * rounding(dtype) * 2 + 1e-7).all()), float(error.max())
    assert torch.equal(quickgelu(torch.tensor([[-1e5, 0.0, 1e5]])), torch.tensor([[0.0, 0.0, 1e5]]))


def assert_turned(got: tuple[Tensor, Tensor | None], wanted: tuple[Tensor, Tensor | None], dtype: torch.dtype) -> None:
    for one, exact in zip(got, wanted, strict=True):
        assert (one is None) == (exact is None)
        if one is not None and exact is not None:
            error = (one.double() - exact).abs()
            assert float(error.max()) <= 4 * rounding(dtype) * float(exact.abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_interleaved", [False, True])
@pytest.mark.parametrize(
    ("head_size", "rotary_dim", "section"), [(128, 128, (16, 24, 24)), (72, 48, (10, 8, 6)), (12, 12, (2, 2, 2))]
)
def test_mrope_turns_each_pair_by_its_axis(
    head_size: int, rotary_dim: int, section: tuple[int, int, int], is_interleaved: bool, dtype: torch.dtype
) -> None:
    op = MRotaryEmbedding(head_size, rotary_dim, 60, 1e4, mrope_section=section, mrope_interleaved=is_interleaved)
    positions = torch.randint(0, 60, (3, 5))
    qkv = torch.randn(5, 7 * head_size).to(dtype)
    query, key = qkv[:, : 4 * head_size], qkv[:, 4 * head_size : 6 * head_size]
    got = rotary_embedding(
        positions, query, key, op.cos_sin_cache, head_size, rotary_dim, True, section, is_interleaved
    )
    wanted = op.double().reference(positions, query.double(), key.double())
    assert_turned(got, wanted, dtype)
    same = torch.randint(0, 60, (5,))
    flat = rotary_embedding(same, query, None, op.cos_sin_cache.to(torch.float32), head_size, rotary_dim, True)
    table = op.cos_sin_cache.to(torch.float32)
    spread = rotary_embedding(
        same.expand(3, -1), query, None, table, head_size, rotary_dim, True, section, is_interleaved
    )
    assert torch.equal(flat[0], spread[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_size", [64, 72, 80, 20])
def test_vision_rope_turns_by_row_and_column(head_size: int, dtype: torch.dtype) -> None:
    op = VisionRotaryEmbedding(head_size, 40)
    positions = torch.randint(0, 40, (2, 6))
    qkv = torch.randn(6, 3, 3, head_size).to(dtype)
    query, key, _ = qkv.unbind(1)
    quarter = head_size // 4
    got = rotary_embedding(positions, query, key, op.cos_sin_cache, head_size, head_size, True, (quarter, quarter))
    assert_turned(got, op.double().reference(positions, query.double(), key.double()), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", ["none", "each", "shared"])
@pytest.mark.parametrize(
    ("batch", "num_tokens", "num_heads", "head_size", "grid"), [(2, 21, 3, 18, 3), (1, 70, 16, 64, 4), (3, 1, 1, 27, 2)]
)
def test_vjepa2_rope_turns_by_frame_row_and_column(
    batch: int, num_tokens: int, num_heads: int, head_size: int, grid: int, given: str, dtype: torch.dtype
) -> None:
    op = VJEPA2Rope(head_size, grid)
    positions = None if given == "none" else torch.randint(0, 900, (batch if given == "each" else 1, num_tokens))
    qkv = torch.randn(batch, num_tokens, 3, num_heads, head_size).to(dtype)
    query, key, _ = qkv.unbind(2)
    before, inverse = qkv.clone(), _inverse(head_size, op.base, torch.float32, qkv.device)
    got = vjepa2_rope(query, key, positions, inverse, grid)
    assert all(x.is_contiguous() for x in got)
    assert torch.equal(qkv, before)
    # Angles are products of two float32: their rounding grows with the place, here up to 900 radians in four grids.
    wanted = op.reference(query.float(), key.float(), positions)
    assert_turned(got, (wanted[0].double(), wanted[1].double()), dtype)
    rest = 6 * (head_size // 6)
    assert torch.equal(got[0][..., rest:], query[..., rest:])
    assert torch.equal(got[1][..., rest:], key[..., rest:])
    exact = op.reference(query.double(), key.double(), positions)
    for one, other in zip(got, exact, strict=True):
        assert float((one.double() - other).abs().max()) <= max(3e-4, 4 * rounding(dtype)) * float(other.abs().max())


def test_vjepa2_rope_of_turned_axes_and_of_no_token() -> None:
    op = VJEPA2Rope(12, 2)
    inverse = _inverse(12, op.base, torch.float32, torch.device("cpu"))
    query, key = torch.randn(2, 1, 12, 5, 3).transpose(2, 4).unbind(0)
    got = vjepa2_rope(query, key, None, inverse, 2)
    assert_turned(got, op.reference(query.double(), key.double()), torch.float32)
    empty = torch.randn(1, 0, 2, 12)
    assert vjepa2_rope(empty, empty, None, inverse, 2)[0].shape == empty.shape
    with pytest.raises(UnsupportedError, match="float64"):
        vjepa2_rope(query.double(), key.double(), None, inverse, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("head_size", "heads", "kv_heads", "lens"),
    [(64, 2, 2, [1, 70, 3]), (72, 3, 3, [33, 64]), (80, 2, 2, [65, 1]), (128, 4, 2, [17, 40])],
)
def test_bidirectional_attention_sees_the_whole_sequence(
    head_size: int, heads: int, kv_heads: int, lens: list[int], dtype: torch.dtype
) -> None:
    total = sum(lens)
    packed = torch.randn(total, heads + 2 * kv_heads, head_size).to(dtype)
    query, key, value = packed.split([heads, kv_heads, kv_heads], dim=1)
    starts = torch.tensor([0, *lens]).cumsum(0).int()
    got = flash_attn_prefill(query, key, value, starts, max(lens), head_size**-0.5, is_causal=False)
    for start, end in pairwise(starts.tolist()):
        q = query[start:end].double().transpose(0, 1)
        k, v = (x[start:end].double().transpose(0, 1).repeat_interleave(heads // kv_heads, 0) for x in (key, value))
        wanted = ((q @ k.transpose(1, 2)) * head_size**-0.5).softmax(-1) @ v
        error = (got[start:end].double() - wanted.transpose(0, 1)).abs().max()
        assert float(error) <= 8 * rounding(dtype) * float(wanted.abs().max())
