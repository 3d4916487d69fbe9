"""skinny_linear against float64: run by test_kernels_interpreter.py, or with TRITON_INTERPRET=1."""

import pytest
import torch
from torch import Tensor

from fastkernels.env import triton_interpreted
from fastkernels.errors import UnsupportedError

if not triton_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1; test_kernels_interpreter.py sets it", allow_module_level=True)

from fastkernels.kernels.skinny_linear import SkinnyTile, fast_linear, is_skinny, skinny_linear, skinny_tile

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
DTYPES = [torch.float32, torch.float16]
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every torch.empty is filled with NaN, so that an element no kernel wrote shows."""
    torch.manual_seed(0)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(float("nan")))


def assert_product(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Within one rounding of the result and the float32 sum's error, of which the terms' sizes are the measure."""
    terms = x.double().abs() @ weight.double().abs().t()
    expected = x.double() @ weight.double().t()
    if bias is not None:
        expected += bias.double()
    assert y.shape == expected.shape
    error = (y.double() - expected).abs()
    bound = expected.abs() * ROUNDING[y.dtype] * 1.01 + terms * 2.0**-24 * 16
    assert (error <= bound).all(), f"worst ratio to the bound: {(error / bound).max()}"


def make(num_rows: int, num_cols: int, num_inputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of x and of the weight inside wider, NaN-filled buffers."""
    x, weight = (torch.full((n, num_inputs + 5), float("nan"), dtype=dtype) for n in (num_rows, num_cols))
    x[:, 2:-3] = torch.randn(num_rows, num_inputs).to(dtype)
    weight[:, 1:-4] = torch.randn(num_cols, num_inputs).to(dtype)
    return x[:, 2:-3], weight[:, 1:-4], torch.randn(num_cols).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    ("num_rows", "num_cols", "num_inputs"),
    [(1, 67, 131), (1, 40, 2048), (1, 1, 8), (2, 96, 64), (5, 67, 131), (33, 130, 300), (16, 64, 512), (64, 1, 17)],
)
def test_skinny_linear_equals_its_definition(
    num_rows: int, num_cols: int, num_inputs: int, has_bias: bool, dtype: torch.dtype
) -> None:
    x, weight, bias = make(num_rows, num_cols, num_inputs, dtype)
    added = bias if has_bias else None
    assert_product(skinny_linear(x, weight, added), x, weight, added)


@pytest.mark.parametrize("num_splits", [1, 2, 3, 7])
@pytest.mark.parametrize("num_inputs", [31, 256, 300])
def test_skinny_linear_adds_the_bias_once_however_the_sum_is_split(num_inputs: int, num_splits: int) -> None:
    x, weight, bias = make(3, 70, num_inputs, torch.float32)
    tile = SkinnyTile(32, 32, num_splits, 4, 2, 0)
    assert_product(skinny_linear(x, weight, bias, tile), x, weight, bias)


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("ahead", [32, 48, 64, 96, 128])
def test_skinny_linear_reads_ahead_whole_steps_within_every_split_or_nothing(ahead: int, num_rows: int) -> None:
    x, weight, bias = make(num_rows, 70, 192, torch.float32)
    for num_splits in (1, 2):
        tile = SkinnyTile(32, 64, num_splits, 4, 2, ahead)
        with torch.inference_mode():
            assert_product(skinny_linear(x, weight, bias, tile), x, weight, bias)


def test_skinny_linear_keeps_leading_axes_and_takes_transposed_rows() -> None:
    weight = torch.randn(48, 33)
    x = torch.randn(33, 6).t()
    y = skinny_linear(x.reshape(2, 3, 33), weight)
    assert_product(y.flatten(0, 1), x, weight, None)
    assert_product(skinny_linear(x, weight), x, weight, None)


def test_skinny_linear_refuses_integers() -> None:
    with pytest.raises(UnsupportedError, match="int64"):
        skinny_linear(torch.ones(1, 8, dtype=torch.int64), torch.ones(4, 8))


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("ahead", [32, 64, 128])
@pytest.mark.parametrize(("num_inputs", "num_splits"), [(64, 1), (128, 2), (192, 2), (320, 1), (330, 3)])
def test_skinny_linear_that_reads_ahead_equals_its_definition(
    num_rows: int, num_inputs: int, num_splits: int, ahead: int
) -> None:
    x, weight, bias = make(num_rows, 70, num_inputs, torch.float16)
    tile = SkinnyTile(32, 32, 1 if num_rows == 1 else num_splits, 4, 2, ahead)
    with torch.inference_mode():
        y = skinny_linear(x, weight, bias, tile)
    assert_product(y, x, weight, bias)


@pytest.mark.parametrize("num_rows", [1, 2, 16, 32, 64])
@pytest.mark.parametrize(("num_cols", "num_inputs"), [(6144, 4096), (4096, 14336), (128256, 4096), (2**16, 64)])
def test_skinny_tile_reads_whole_steps_ahead(num_rows: int, num_cols: int, num_inputs: int) -> None:
    tile = skinny_tile(num_rows, num_cols, num_inputs)
    assert tile.ahead % tile.block_k == 0
    assert num_rows > 1 or tile.num_splits == 1
    for size in (tile.block_n, tile.block_k, tile.ahead):
        assert size & (size - 1) == 0


def test_fast_linear_on_a_cpu_is_torchs() -> None:
    x, weight, bias = make(4, 64, 64, torch.float32)
    assert not is_skinny(x, weight)
    assert fast_linear(x, weight, bias).equal(torch.nn.functional.linear(x, weight, bias))
