"""Row-wise kernels against float64 definitions: run by test_kernels_interpreter.py, or with TRITON_INTERPRET=1."""

import pytest
import torch
from torch import Tensor

from fastkernels.env import triton_interpreted
from fastkernels.errors import UnsupportedError

if not triton_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1; test_kernels_interpreter.py sets it", allow_module_level=True)

from fastkernels.kernels import group_norm as kernel_of_groups
from fastkernels.kernels.group_norm import group_norm
from fastkernels.kernels.rms_norm import add_rms_norm, rms_norm
from fastkernels.kernels.rotary_emb import rotary_embedding
from fastkernels.kernels.silu_and_mul import silu_and_mul
from fastkernels.kernels.store_kvcache import store_kvcache

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
DTYPES = [torch.float32, torch.float16]
# One rounding to the output's dtype, and a few of float32 before it.
RELATIVE = {torch.float32: 2e-6, torch.float16: 2.0**-11 * 1.01}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every torch.empty is filled with NaN, so that an element no kernel wrote shows."""
    torch.manual_seed(0)
    empty, empty_like = torch.empty, torch.empty_like

    def fill(x: Tensor) -> Tensor:
        return x.fill_(float("nan")) if x.is_floating_point() else x.fill_(2**30)

    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: fill(empty(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: fill(empty_like(*args, **kwargs)))


def assert_near(got: Tensor, expected: Tensor, least: float = 1e-30) -> None:
    assert got.shape == expected.shape
    error = (got.double() - expected).abs()
    bound = expected.abs() * RELATIVE[got.dtype] + (6.1e-8 if got.dtype == torch.float16 else least)
    assert (error <= bound).all(), f"worst ratio to the bound: {(error / bound).max()}"


def strided_rows(num_rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Rows inside a wider, NaN-filled buffer."""
    buffer = torch.full((num_rows, width + 11), float("nan"), dtype=dtype)
    buffer[:, 3 : 3 + width] = torch.randn(num_rows, width).to(dtype)
    return buffer[:, 3 : 3 + width]


def norm(h: Tensor, weight: Tensor, eps: float) -> Tensor:
    return h / (h.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_size", [1, 2, 64, 257, 1021, 4096, 16384, 16411])
def test_rms_norm_equals_its_definition(hidden_size: int, dtype: torch.dtype) -> None:
    weight = torch.randn(hidden_size).to(dtype)
    for x in (torch.randn(2, 3, hidden_size).to(dtype), strided_rows(5, hidden_size, dtype)):
        before = x.clone()
        assert_near(rms_norm(x, weight, 1e-5), norm(x.double(), weight, 1e-5))
        assert x.equal(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_size", [1, 64, 257, 16411])
def test_add_rms_norm_norms_the_unrounded_sum(hidden_size: int, dtype: torch.dtype) -> None:
    x, residual = strided_rows(7, hidden_size, dtype), strided_rows(7, hidden_size, dtype)
    weight = torch.randn(hidden_size).to(dtype)
    before = x.clone(), residual.clone()
    y, new_residual = add_rms_norm(x, residual, weight, 1e-6)
    h = x.double() + residual.double()
    assert_near(y, norm(h, weight, 1e-6), least=1e-6)
    assert new_residual.equal((x.float() + residual.float()).to(dtype))
    assert x.equal(before[0])
    assert residual.equal(before[1])


@pytest.mark.parametrize(("hidden_size", "dtype"), [(64, torch.float32), (257, torch.float16), (16411, torch.float16)])
def test_rms_norm_with_weights_from_one_adds_it_unrounded(hidden_size: int, dtype: torch.dtype) -> None:
    x, residual = torch.randn(3, hidden_size).to(dtype), torch.randn(3, hidden_size).to(dtype)
    weight = (0.2 * torch.randn(hidden_size)).to(dtype)
    factor, h = 1 + weight.double(), x.double() + residual.double()
    assert_near(rms_norm(x, weight, 1e-6, is_from_one=True), norm(x.double(), factor, 1e-6))
    y, new_residual = add_rms_norm(x, residual, weight, 1e-6, is_from_one=True)
    assert_near(y, norm(h, factor, 1e-6), least=1e-6)
    assert new_residual.equal(h.to(dtype))


def test_rms_norm_takes_a_transposed_input_and_float32_weights() -> None:
    x = torch.randn(33, 4).half().t()
    weight = torch.randn(33)
    assert_near(rms_norm(x, weight, 1e-6), norm(x.double(), weight, 1e-6))


def test_rms_norm_of_a_zero_row_is_zero() -> None:
    assert rms_norm(torch.zeros(3, 40), torch.ones(40), 1e-6).equal(torch.zeros(3, 40))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 7, 64, 257, 1024, 1031])
def test_silu_and_mul_equals_its_definition(d: int, dtype: torch.dtype) -> None:
    for x in (torch.randn(2, 3, 2 * d).mul(4).to(dtype), strided_rows(5, 2 * d, dtype)):
        gate, up = x.double().chunk(2, dim=-1)
        assert_near(silu_and_mul(x), gate / (1 + (-gate).exp()) * up)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
def test_silu_and_mul_saturates_without_nan() -> None:
    y = silu_and_mul(torch.tensor([[-3e38, 3e38, -200.0, 1.0, 1.0, 3.0]]))
    assert torch.equal(y, torch.tensor([[0.0, 3e38, 0.0]]))


def rotated(x: Tensor, positions: Tensor, table: Tensor, head_size: int, is_neox: bool) -> Tensor:
    out = x.double().reshape(len(positions), -1, head_size).clone()
    half = table.shape[1] // 2
    for token, position in enumerate(positions.tolist()):
        cos, sin = table[position, :half].double(), table[position, half:].double()
        first = slice(0, half) if is_neox else slice(0, 2 * half, 2)
        second = slice(half, 2 * half) if is_neox else slice(1, 2 * half, 2)
        a, b = out[token, :, first].clone(), out[token, :, second].clone()
        out[token, :, first] = a * cos - b * sin
        out[token, :, second] = a * sin + b * cos
    return out.reshape(x.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_size", "rotary_dim"),
    [(8, 2, 64, 64), (3, 1, 80, 80), (5, 5, 96, 32), (1, 1, 2, 2), (71, 1, 64, 22), (40, 8, 128, 128)],
)
def test_rotary_embedding_equals_its_definition(
    num_heads: int, num_kv_heads: int, head_size: int, rotary_dim: int, is_neox: bool, dtype: torch.dtype
) -> None:
    angles = torch.rand(50, rotary_dim // 2) * 6
    table = torch.cat((angles.cos(), angles.sin()), dim=-1)
    positions = torch.randint(0, 50, (3,))
    qkv = torch.randn(3, (num_heads + 2 * num_kv_heads) * head_size).to(dtype)
    query, key, _ = qkv.split((num_heads * head_size, num_kv_heads * head_size, num_kv_heads * head_size), dim=-1)
    before = qkv.clone()
    forms = ((query, key), (query.unflatten(1, (-1, head_size)), key.unflatten(1, (-1, head_size))), (query, None))
    for q, k in forms:
        got = rotary_embedding(positions, q, k, table, head_size, rotary_dim, is_neox)
        for x, y in zip((q, k), got, strict=True):
            assert (x is None) == (y is None)
            if x is not None and y is not None:
                # a * cos - b * sin may cancel: its error is that of the two products.
                expected = rotated(x, positions, table, head_size, is_neox)
                error = (y.double() - expected).abs()
                assert (error <= expected.abs() * RELATIVE[dtype] + 1e-6).all()
                assert y.is_contiguous()
    assert qkv.equal(before)


def pages(num_pages: int, page_size: int, num_heads: int, head_size: int, layout: str, dtype: torch.dtype) -> Tensor:
    """[2, num_pages, page_size, num_heads, head_size] of NaN, with heads or pages outermost, or padded heads."""
    if layout == "heads_first":
        return torch.full((2, num_pages, num_heads, page_size, head_size), torch.nan, dtype=dtype).transpose(2, 3)
    if layout == "padded":
        return torch.full((2, num_pages, page_size, num_heads, head_size + 8), torch.nan, dtype=dtype)[..., :head_size]
    return torch.full((2, num_pages, page_size, num_heads, head_size), torch.nan, dtype=dtype)


@pytest.mark.parametrize("layout", ["dense", "heads_first", "padded"])
@pytest.mark.parametrize(
    ("page_size", "num_heads", "head_size"), [(16, 2, 64), (1, 1, 80), (7, 3, 33), (256, 8, 128), (16, 1, 1)]
)
def test_store_kvcache_writes_its_slots_alone(page_size: int, num_heads: int, head_size: int, layout: str) -> None:
    num_tokens, num_pages = 37, max(4, 80 // page_size)
    cache = pages(num_pages, page_size, num_heads, head_size, layout, torch.float16)
    qkv = torch.randn(num_tokens, 3 * num_heads * head_size).half()
    key, value = (x.unflatten(1, (num_heads, head_size)) for x in qkv.chunk(3, dim=-1)[1:])
    slots = torch.randperm(num_pages * page_size)[:num_tokens]
    slots[::5] = -1
    expected = cache.clone().reshape(2, num_pages * page_size, num_heads, head_size)
    expected[0, slots[slots >= 0]] = key[slots >= 0]
    expected[1, slots[slots >= 0]] = value[slots >= 0]
    store_kvcache(key, value, cache[0], cache[1], slots)
    assert torch.equal(cache.contiguous().view(torch.int16), expected.reshape(cache.shape).view(torch.int16))


def test_store_kvcache_with_many_tokens_fills_blocks_of_tokens() -> None:
    cache = torch.zeros(2, 100, 16, 1, 64)
    key, value = torch.randn(2, 1500, 1, 64)
    slots = torch.randperm(1600)[:1500]
    store_kvcache(key, value, cache[0], cache[1], slots)
    assert cache[0].flatten(0, 1)[slots].equal(key)
    assert cache[1].flatten(0, 1)[slots].equal(value)


def test_kernels_of_no_rows_return_empty_tensors() -> None:
    assert rms_norm(torch.randn(0, 64), torch.ones(64), 1e-6).shape == (0, 64)
    assert [x.shape for x in add_rms_norm(*torch.randn(2, 0, 3, 64), torch.ones(64), 1e-6)] == [(0, 3, 64)] * 2
    assert silu_and_mul(torch.randn(0, 14)).shape == (0, 7)
    assert silu_and_mul(torch.randn(4, 0)).shape == (4, 0)
    query, key = rotary_embedding(
        torch.zeros(0, dtype=torch.int64), torch.randn(0, 64), torch.randn(0, 32), torch.randn(9, 16), 16, 16, True
    )
    assert query.shape == (0, 64)
    assert key is not None
    assert key.shape == (0, 32)
    empty = torch.randn(0, 2, 16)
    store_kvcache(empty, empty, *torch.zeros(2, 3, 4, 2, 16), torch.zeros(0, dtype=torch.int64))


def test_kernels_refuse_what_they_lack_and_name_it() -> None:
    with pytest.raises(UnsupportedError, match="float64"):
        rms_norm(torch.randn(2, 4).double(), torch.ones(4), 1e-6)
    with pytest.raises(UnsupportedError, match="odd size: 7"):
        silu_and_mul(torch.randn(2, 7))
    with pytest.raises(UnsupportedError, match="got 15"):
        rotary_embedding(torch.zeros(2).long(), torch.randn(2, 64), None, torch.randn(9, 15), 16, 15, True)
    with pytest.raises(UnsupportedError, match="one dtype"):
        store_kvcache(*torch.randn(2, 2, 1, 8), *torch.zeros(2, 3, 4, 1, 8).half(), torch.zeros(2).long())


def assert_group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, has_silu: bool, shift: Tensor | None = None
) -> None:
    """As defined in float32; in float16 what that gives of the same values, rounded once."""
    before, params = x.clone(), [None if p is None else p.double() for p in (weight, bias)]
    shifts = torch.zeros(x.shape[:2]).double() if shift is None else shift.double()
    h = x.double() + shifts.unflatten(1, (-1, *[1] * (x.dim() - 2)))
    exact = torch.nn.functional.group_norm(h, num_groups, *params, 1e-5)
    exact = torch.nn.functional.silu(exact) if has_silu else exact
    wide = [None if p is None else p.float() for p in (weight, bias)]
    wide_y = group_norm(x.float(), num_groups, *wide, 1e-5, has_silu, None if shift is None else shift.float())
    assert_near(wide_y, exact, least=4e-6)
    y = group_norm(x, num_groups, weight, bias, 1e-5, has_silu, shift)
    assert y.equal(wide_y.to(x.dtype))
    assert x.equal(before)
    assert y.is_contiguous() or y.stride() == x.stride()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 12, 7, 5), (1, 6, 33, 31), (3, 4, 1, 1), (1, 4, 96, 97), (2, 10, 640)], ids=str)
def test_group_norm_equals_its_definition_in_both_layouts(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    channels = shape[1]
    weight, bias = torch.randn(channels).to(dtype), torch.randn(channels).to(dtype)
    x = (torch.randn(shape) + 3 * torch.randn(1, channels, *[1] * (len(shape) - 2))).to(dtype)
    layouts = [x] if len(shape) == 3 else [x, x.to(memory_format=torch.channels_last), x.transpose(2, 3)]
    for given in layouts:
        for num_groups, has_silu, is_affine in ((2, True, True), (1, False, True), (channels // 2, True, False)):
            params = (weight, bias) if is_affine else (None, None)
            assert_group_norm(given, num_groups, *params, has_silu)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "num_groups"),
    [((3, 5), 5), ((2, 6, 5, 3, 7), 3), ((1, 200, 9, 5), 1), ((1, 9, 70, 70), 3), ((2, 96, 40), 2)],
)
@pytest.mark.parametrize("programs_per_sm", [1, 1000])
def test_group_norm_merges_every_part_of_any_layout(
    programs_per_sm: int, shape: tuple[int, ...], num_groups: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any number of axes; of groups wider than a tile, in parts of many steps or more than are merged at once."""
    monkeypatch.setattr(kernel_of_groups, "_PROGRAMS_PER_SM", programs_per_sm)
    monkeypatch.setattr(kernel_of_groups, "_MERGED_AT_ONCE", 128)
    monkeypatch.setattr(kernel_of_groups, "_MOST_MERGED_PARTS", 2)
    weight, bias = torch.randn(2, shape[1]).to(dtype)
    x = (torch.randn(shape) * torch.linspace(0.2, 3.0, shape[-1]) + torch.linspace(-4.0, 4.0, shape[-1])).to(dtype)
    pixels = x.movedim(1, -1).contiguous().movedim(-1, 1)
    for given in (x, pixels):
        assert_group_norm(given, num_groups, weight, bias, False)
        assert group_norm(given, num_groups, weight, bias, 1e-5).stride() == given.stride()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 12, 7, 5), (1, 70, 3, 31), (1, 4, 4500)], ids=str)
@pytest.mark.parametrize("programs_per_sm", [1, 1000])
def test_group_norm_of_shifted_channels_rounds_no_sum(
    programs_per_sm: int, shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shift for each image, in rows of a wider tensor or with gaps between channels too, or one for all."""
    monkeypatch.setattr(kernel_of_groups, "_PROGRAMS_PER_SM", programs_per_sm)
    monkeypatch.setattr(kernel_of_groups, "_MERGED_AT_ONCE", 256)
    batch, channels = shape[:2]
    weight, bias = torch.randn(2, channels).to(dtype)
    x = torch.randn(shape).to(dtype)
    rows = strided_rows(batch, channels, dtype)
    shifts = [3 * rows, rows, torch.randn(1, channels).to(dtype).expand(batch, -1)]
    shifts += [torch.randn(channels, batch).to(dtype).t()]
    for given in (x, x.movedim(1, -1).contiguous().movedim(-1, 1)):
        for shift in shifts:
            before = shift.clone()
            assert_group_norm(given, 2, weight, bias, True, shift)
            assert shift.equal(before)
        assert_group_norm(given, 1, None, None, False, rows)


@pytest.mark.parametrize("is_channels_last", [False, True])
def test_group_norm_of_values_far_from_zero_keeps_their_digits(is_channels_last: bool) -> None:
    """Moments are centred: the mean of squares less the square of the mean would have no digit left of 1e8 in 1."""
    x = 1e4 + torch.randn(1, 8, 64, 40)
    x = x.to(memory_format=torch.channels_last) if is_channels_last else x
    y = group_norm(x, 2, None, None, 1e-5)
    exact = torch.nn.functional.group_norm(x.double(), 2, eps=1e-5)
    assert (y - exact).abs().max() < 1e-3  # a float32 at 1e4 is rounded by up to 5e-4
    flat = group_norm(torch.full_like(x, 7.3), 2, None, None, 1e-5)
    assert flat.abs().max() < 2e-3
