"""Norm, rope, bag, sparse and top-k kernels against float64 definitions: run by test_kernels_interpreter.py."""

import pytest
import torch
from torch import Tensor

from fastkernels.env import triton_interpreted
from fastkernels.errors import UnsupportedError

if not triton_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1; test_kernels_interpreter.py sets it", allow_module_level=True)

from fastkernels.kernels.addcmul import _addcmul_kernel, addcmul
from fastkernels.kernels.dinov3_rope import dinov3_rope
from fastkernels.kernels.embedding_bag import embedding_bag
from fastkernels.kernels.layer_norm import add_layer_norm, layer_norm, layer_norm_of_sum
from fastkernels.kernels.spmm import spmm
from fastkernels.kernels.top_k_per_row import MOST_COLUMNS, MOST_TAKEN, top_k_per_row

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
DTYPES = [torch.float32, torch.float16]
RELATIVE = {torch.float32: 4e-6, torch.float16: 2.0**-11 * 1.01}


def assert_near(given: Tensor, exact: Tensor) -> None:
    """Within a rounding of the output, and of what its row holds."""
    assert given.shape == exact.shape
    scale = exact.abs().amax(-1, keepdim=True) if exact.numel() else exact
    bound = RELATIVE[given.dtype] * exact.abs() + RELATIVE[torch.float32] * scale + 6.1e-8
    assert ((given.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 5, 64, 257, 1024])
def test_layer_norm_equals_its_definition(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(size)
    wide = torch.randn(3, 4, size + 7).to(dtype) * 3 + 5
    weight, bias = torch.randn(size).to(dtype), torch.randn(size).to(dtype)
    for x in (wide[..., :size].contiguous(), wide[..., 3 : 3 + size]):
        for params in ((weight, bias), (weight, None), (None, None)):
            exact = torch.nn.functional.layer_norm(
                x.double(), (size,), *(None if p is None else p.double() for p in params), 1e-5
            )
            assert_near(layer_norm(x, *params, 1e-5), exact)


def test_layer_norm_of_nothing_is_nothing_and_long_rows_are_refused() -> None:
    assert layer_norm(torch.randn(0, 8), None, None, 1e-5).shape == (0, 8)
    with pytest.raises(UnsupportedError, match="16384 elements, got 16385"):
        layer_norm(torch.randn(1, 16385), None, None, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 5, 64, 257, 1024])
def test_layer_norm_of_a_sum_is_bitwise_that_of_the_float32_sum(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(size)
    wide = torch.randn(2, 3, 4, size + 7).to(dtype) * 3 + 5
    weight, bias, scale = torch.randn(3, size).to(dtype)
    x, residual = wide[0, ..., 3 : 3 + size], wide[1, ..., :size].contiguous()
    expanded = wide[1, :, :1, :size].expand(3, 4, size)
    before = wide.clone()
    for added, by in ((residual, None), (residual, scale), (wide[1, ..., 5 : 5 + size], scale), (expanded, None)):
        sums = added.float() + (x.float() if by is None else x.float() * by.float())
        for params in ((weight, bias), (weight, None), (None, None)):
            y, total = add_layer_norm(x, added, by, *params, 1e-5)
            assert y.is_contiguous() and total.is_contiguous()  # noqa: PT018
            assert torch.equal(total, sums.to(dtype))
            exact = layer_norm(sums, *(None if p is None else p.float() for p in params), 1e-5)
            assert torch.equal(y, exact.to(dtype))
            assert torch.equal(layer_norm_of_sum(x, added, by, *params, 1e-5), y)
    assert torch.equal(wide, before)


def test_layer_norm_of_a_sum_reads_nothing_behind_its_rows() -> None:
    wide = torch.full((2, 3, 40), float("nan"))
    wide[..., :33] = torch.randn(2, 3, 33)
    scale = torch.full((40,), float("nan"))
    scale[:33] = torch.randn(33)
    y, total = add_layer_norm(wide[0, :, :33], wide[1, :, :33], scale[:33], None, None, 1e-5)
    assert not torch.cat([y, total]).isnan().any()
    empty = torch.randn(0, 8)
    assert [t.shape for t in add_layer_norm(empty, empty, None, None, None, 1e-5)] == [(0, 8), (0, 8)]


class _Launches:
    """Counts what is launched of one kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num, run = 0, type(_addcmul_kernel).run

        def counted(kernel: object, *args: object, **words: object) -> object:
            self.num += kernel is _addcmul_kernel
            return run(kernel, *args, **words)

        monkeypatch.setattr(type(_addcmul_kernel), "run", counted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 5, 64, 257, 1024, 2500])
def test_addcmul_equals_its_definition(size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(size)
    launches, done = _Launches(monkeypatch), 0
    wide = torch.full((3, 3, 11, size + 9), float("nan"), dtype=dtype)
    wide[..., 2 : 2 + size] = torch.randn(3, 3, 11, size)
    strided, dense = wide[..., 2 : 2 + size], wide[..., 2 : 2 + size].contiguous()
    for x, first, rows in (dense, strided, (dense[0], strided[1], strided[2])):
        for second in (rows, rows[0, 0], rows.flatten()[::2][:size], rows.transpose(0, 1).contiguous().transpose(0, 1)):
            y, done = addcmul(x, first, second), done + 1
            assert_near(y, x.double() + first.double() * second.double())
            assert y.is_contiguous()
    one = dense[0, 0, :1]
    assert_near(addcmul(one, one, one[0]), one.double() + one.double() * one[0].double())
    assert launches.num == done + 1


def test_addcmul_leaves_other_broadcasts_and_dtypes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    launches, x = _Launches(monkeypatch), torch.randn(3, 5, 7)
    for first, second in (
        (x, x[0, 0, 0]),
        (x, x[:, :1]),
        (x[0], x),
        (x[0, 0], x[0, 0]),
        (x.double(), x.double()),
        (x[..., :1], x),
    ):
        y = addcmul(x.to(first.dtype), first, second)
        assert torch.equal(y, torch.addcmul(x.to(first.dtype), first, second))
    assert addcmul(x[:0], x[:0], x[0, 0]).shape == (0, 5, 7)
    assert launches.num == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_prefix", "height", "width"), [(5, 3, 4), (0, 1, 1), (1, 2, 7)])
def test_dinov3_rope_rotates_patches_and_copies_what_stands_ahead(
    num_prefix: int, height: int, width: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    num_tokens, half = num_prefix + height * width, 12
    qkv = torch.randn(2, num_tokens, 3, 5, 2 * half).to(dtype)
    query, key, _ = qkv.unbind(2)
    angles = torch.randn(height * width, half)
    rotated = dinov3_rope(query, key, angles.cos(), angles.sin())
    for given, x in zip(rotated, (query, key), strict=True):
        first, second = x[:, num_prefix:].double().chunk(2, -1)
        cos, sin = angles.cos().double()[:, None], angles.sin().double()[:, None]
        assert torch.equal(given[:, :num_prefix], x[:, :num_prefix])
        assert_near(given[:, num_prefix:], torch.cat([first * cos - second * sin, second * cos + first * sin], -1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 13, 64, 300])
def test_embedding_bag_sums_the_ids_that_are_there(dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(dim)
    sizes, first_rows = (11, 3), torch.tensor([0, 11])
    weight = torch.randn(14, dim).to(dtype)
    ids = torch.stack([torch.randint(-1, n, (7, 5)) for n in sizes], dim=1)
    ids[2] = -1
    exact = torch.zeros(7, 2, dim, dtype=torch.float64)
    for b, t, j in (ids >= 0).nonzero().tolist():
        exact[b, t] += weight[first_rows[t] + ids[b, t, j]].double()
    given = embedding_bag(ids, first_rows, weight)
    assert ((given.double() - exact).abs() <= RELATIVE[dtype] * exact.abs() + 2e-6).all()
    assert not given[2].any()
    assert embedding_bag(ids[:0], first_rows, weight).shape == (0, 2, dim)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 13, 64, 200])
@pytest.mark.parametrize(
    "counts",
    [
        [0, 40, 1, 0, 17, 16],
        [0, 3000, 0, 0, 700, 1, 0],
        [1300],
        [256, 257, 0, 255, 1, 512, 513, 511],  # a segment's length, and one more or less, at and off its multiples
        [300, 400, 212, 0, 256, 768, 2],  # long rows after each other: one ends in the block that the next begins in
        [0, 0, 0],
    ],
)
def test_spmm_equals_the_dense_product(counts: list[int], dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(dim)
    starts = torch.tensor([0, *counts]).cumsum(0)
    cols = torch.randint(0, 9, (sum(counts),))
    values, x = torch.randn(len(cols)).to(dtype), torch.randn(9, dim).to(dtype)
    matrix = torch.zeros(len(counts), 9, dtype=torch.float64)
    rows = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    matrix.index_put_((rows, cols), values.double(), accumulate=True)
    given, exact = spmm(starts, cols, values, x), matrix @ x.double()
    sizes = torch.zeros_like(matrix).index_put_((rows, cols), values.double().abs(), accumulate=True) @ x.double().abs()
    bound = RELATIVE[dtype] * exact.abs() + 4e-7 * sizes + 6.1e-8
    assert ((given.double() - exact).abs() <= bound).all()
    assert not given[torch.tensor(counts) == 0].any()
    assert torch.equal(spmm(starts, cols, values, x), given)


def test_spmm_of_no_rows_or_columns_is_nothing() -> None:
    none = torch.zeros(1, dtype=torch.int64)
    assert spmm(none, none[:0], torch.zeros(0), torch.randn(4, 5)).shape == (0, 5)
    assert spmm(torch.tensor([0, 1, 1]), none, torch.ones(1), torch.randn(4, 0)).shape == (2, 0)


TOP_K_ROWS = {
    "drawn": lambda n: torch.randn(3, n),
    "few values": lambda n: torch.randint(-2, 3, (3, n)).float(),
    "zeros of both signs": lambda n: torch.where(torch.rand(3, n) < 0.5, -0.0, 0.0),
    "rising": lambda n: torch.arange(3.0 * n).reshape(3, n) / 1024,
    "infinite": lambda n: torch.where(torch.rand(3, n) < 0.5, float("-inf"), float("inf")),
    "all of minus infinity but two": lambda n: torch.full((3, n), float("-inf")).index_fill(
        1, torch.tensor([0, n - 1]), 1.0
    ),
    "not a number": lambda n: torch.where(torch.rand(3, n) < 1.5 / n, float("nan"), torch.randn(3, n)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TOP_K_ROWS)
def test_top_k_per_row_takes_the_largest_in_order(kind: str, dtype: torch.dtype) -> None:
    for num_columns, k in ((1, 1), (7, 7), (33, 5), (64, 64), (1021, 20), (4096, 3), (4099, 9), (9001, 4)):
        x = TOP_K_ROWS[kind](num_columns).to(dtype)
        if kind == "not a number":
            x[1, num_columns // 2 :] = -x[1, num_columns // 2 :]  # of either sign
        indices = top_k_per_row(x, k)
        assert (indices.dtype, tuple(indices.shape)) == (torch.int64, (3, k))
        assert torch.equal(x.gather(1, indices).nan_to_num(1e4), torch.topk(x, k).values.nan_to_num(1e4))
        assert all(len(set(row.tolist())) == k for row in indices)
        # of equal values the first
        is_tie = x.gather(1, indices)[:, 1:] == x.gather(1, indices)[:, :-1]
        assert (indices.diff(dim=1)[is_tie] > 0).all()


def test_top_k_per_row_reads_strided_rows_and_nothing_beside_them() -> None:
    buffer = torch.full((5, 300), float("inf"))
    rows = torch.randn(5, 200)
    buffer[:, 17:217] = rows
    assert top_k_per_row(buffer[:, 17:217], 12).equal(torch.topk(rows, 12).indices)
    assert top_k_per_row(buffer[::2, 17:217], 12).equal(torch.topk(rows[::2], 12).indices)
    assert top_k_per_row(rows.T.contiguous().T, 12).equal(torch.topk(rows, 12).indices)
    assert top_k_per_row(rows[:1].expand(4, 200), 3).equal(torch.topk(rows[:1], 3).indices.expand(4, 3))
    assert top_k_per_row(rows[:0], 3).shape == (0, 3)
    assert top_k_per_row(rows, 0).shape == (5, 0)


def test_top_k_per_row_leaves_long_rows_and_many_of_them_to_torch() -> None:
    for num_columns, k in ((MOST_COLUMNS + 1, 2), (200, MOST_TAKEN + 1)):
        x = torch.randn(2, num_columns)
        assert top_k_per_row(x, k).equal(torch.topk(x, k).indices)
