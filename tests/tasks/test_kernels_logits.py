"""Kernels over logits against the ops' definitions: run by test_kernels_interpreter.py, or with TRITON_INTERPRET=1."""

import math

import pytest
import torch
from torch import Tensor

from fastkernels.env import triton_interpreted
from fastkernels.errors import UnsupportedError

if not triton_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1; test_kernels_interpreter.py sets it", allow_module_level=True)

from fastkernels.kernels import apply_logit_bias as bias_kernels
from fastkernels.kernels.apply_logit_bias import apply_logit_bias
from fastkernels.kernels.apply_penalties import apply_penalties
from fastkernels.kernels.apply_token_bitmask import apply_token_bitmask
from fastkernels.kernels.draw_seeds import draw_seeds
from fastkernels.kernels.greedy_sample import greedy_sample
from fastkernels.kernels.min_p import min_p
from fastkernels.kernels.top_logprobs import top_logprobs
from fastkernels.tasks.baseline.L1.apply_logit_bias import ApplyLogitBias
from fastkernels.tasks.baseline.L1.apply_penalties import ApplyPenalties
from fastkernels.tasks.baseline.L1.apply_token_bitmask import ApplyTokenBitmask
from fastkernels.tasks.baseline.L1.draw_seeds import DrawSeeds
from fastkernels.tasks.baseline.L1.min_p import MinP
from fastkernels.tasks.baseline.L1.top_logprobs import TopLogprobs

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
INF, NAN = float("inf"), float("nan")
DTYPES = [torch.float32, torch.float16]
VOCAB_SIZES = [1, 7, 300, 4096, 9001]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def strided(x: Tensor) -> Tensor:
    wide = torch.full((x.shape[0], x.shape[1] + 24), NAN, dtype=x.dtype)
    wide[:, 8:-16] = x
    return wide[:, 8:-16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_greedy_takes_the_lowest_index_of_the_largest(vocab_size: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(9, vocab_size) * 2).round().to(dtype)
    logits[1] = -INF
    logits[2, vocab_size // 2 :] = INF
    logits[3] = 0.0
    logits[3, ::2] = -0.0
    logits[4, vocab_size // 2 :] = INF
    logits[4, vocab_size // 3] = NAN
    logits[5] = -1e30 if dtype != torch.float16 else -6e4
    first = [(row == row.max()).nonzero()[0, 0].item() for row in logits.float().nan_to_num(INF, INF, -INF)]
    first[4] = vocab_size // 3  # NaN, before infinities
    assert greedy_sample(logits).tolist() == first
    assert greedy_sample(strided(logits)).tolist() == first


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_greedy_orders_every_16_bit_number(dtype: torch.dtype) -> None:
    """Each number beside its successor and below a block of equals, in blocks of both widths."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    numbers = bits.view(dtype)[~bits.view(dtype).float().isnan()].float().unique().to(dtype)
    pairs = torch.stack((numbers[1:], numbers[:-1], numbers[1:]), dim=1)
    assert greedy_sample(pairs[::97]).eq(0).all()
    assert greedy_sample(pairs[::97, 1:].contiguous()).eq(1).all()
    wide = torch.full((44, 9000), -1.5, dtype=dtype)
    places = torch.arange(44) * 201
    wide[torch.arange(44), places] = torch.tensor(-1.25).to(dtype)
    assert greedy_sample(wide).equal(places)


def test_greedy_of_no_rows_is_empty_and_float64_is_refused() -> None:
    assert greedy_sample(torch.zeros(0, 9)).tolist() == []
    with pytest.raises(UnsupportedError, match="float64"):
        greedy_sample(torch.zeros(1, 9).double())


@pytest.mark.parametrize("num_rows", [0, 1, 700])
def test_draw_seeds_equal_the_definition(num_rows: int) -> None:
    seeds = torch.randint(-(2**63), 2**63 - 1, (11,))
    rows, positions = torch.randint(0, 11, (num_rows,)), torch.randint(0, 2**40, (num_rows,))
    assert draw_seeds(seeds, rows, positions).equal(DrawSeeds().reference(seeds, rows, positions))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_penalties_equal_the_definition(vocab_size: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(6, vocab_size) * 3).to(dtype)
    logits[2, ::3] = -INF
    counts = torch.randint(0, 7, (8, vocab_size), dtype=torch.int32) * (torch.rand(8, vocab_size) < 0.3)
    rows = torch.tensor([7, 0, 3, 3, 5, 1])
    off, values = torch.zeros(6), torch.tensor([0.0, 0.5, -2.0, 0.0, 1.0, 0.0])
    repetition = torch.tensor([1.0, 1.0, 1.3, 0.7, 1.0, 1.0])
    expected, got = logits.clone(), strided(logits)
    ApplyPenalties().reference(expected, rows, counts.int(), repetition, values, off + values.flip(0))
    apply_penalties(got, rows, strided(counts.float()).int(), repetition, values, off + values.flip(0))
    torch.testing.assert_close(got, expected, rtol=1e-6 if dtype == torch.float32 else 0, atol=0)
    assert got[5].equal(logits[5])
    assert vocab_size < 300 or not got[1:5].equal(logits[1:5])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_biases", [1, 64, 200])
def test_biases_add_up_with_equal_ids(num_biases: int, dtype: torch.dtype) -> None:
    logits = torch.randint(-20, 21, (4, 301)).to(dtype) / 4
    ids = torch.randint(0, 60, (4, num_biases))
    biases = torch.randint(-8, 9, (4, num_biases)) / 4.0
    biases[1] = 0.0
    biases[2, 0] = -INF
    expected, got = logits.clone(), strided(logits)
    ApplyLogitBias().reference(expected, ids, biases)
    apply_logit_bias(got, ids, biases)
    assert got.equal(expected)
    assert got[1].equal(logits[1])
    assert got[2, ids[2, 0]] == -INF
    assert num_biases < 2 * bias_kernels.BLOCK or len(set(ids[0].tolist())) < num_biases


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_bitmask_bars_what_its_bits_do_not_allow(vocab_size: int, dtype: torch.dtype) -> None:
    logits = torch.randn(5, vocab_size).to(dtype)
    words = -(-vocab_size // 32) + 1
    masks = torch.randint(-(2**31), 2**31, (3, words)).int()
    index = torch.tensor([2, -1, 0, 2, 1], dtype=torch.int32)
    expected, got = logits.clone(), strided(logits)
    ApplyTokenBitmask().reference(expected, masks, index)
    apply_token_bitmask(got, masks, index)
    assert got.equal(expected)
    assert got[1].equal(logits[1])
    allowed = [t for t in range(vocab_size) if (int(masks[2, t // 32]) >> (t % 32)) & 1]
    assert (got[0] > -INF).nonzero().flatten().tolist() == allowed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_min_p_cuts_where_the_definition_does(vocab_size: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(7, vocab_size) * 3).to(dtype)
    logits[6] = -INF
    temperature = torch.tensor([1.0, 0.3, 2.0, 0.0, 0.7, 1.0, 1.0])
    p = torch.tensor([0.1, 0.0, 1e-3, 0.5, 1.0, 0.9, 0.5])
    expected, got = logits.clone(), strided(logits)
    MinP().reference(expected, temperature, p)
    min_p(got, temperature, p)
    assert got.equal(expected)
    assert got[1].equal(logits[1])
    assert (got.argmax(-1) == logits.argmax(-1)).all()


@pytest.mark.parametrize("below", [False, True])
def test_min_p_decides_between_neighbours_in_float64(below: bool) -> None:
    """The limit of this row lies between two float32 numbers."""
    temperature, p = torch.tensor([0.7]), torch.tensor([0.3])
    limit = 5.0 + temperature.item() * math.log(p.item())
    nearest = torch.tensor(limit, dtype=torch.float32)
    under, over = (nearest, torch.nextafter(nearest, torch.tensor(INF)))
    if under.item() >= limit:
        under, over = torch.nextafter(nearest, torch.tensor(-INF)), nearest
    logits = torch.stack((torch.tensor(5.0), under if below else over))[None]
    min_p(logits, temperature, p)
    assert (logits[0, 1] == -INF) == below


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("vocab_size", "num"), [(1, 1), (7, 7), (300, 20), (4096, 3), (9001, 20), (9001, 0)])
def test_top_logprobs_equal_a_sort(vocab_size: int, num: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(6, vocab_size) * 2).round(decimals=1).to(dtype)
    logits[1] = 1.0
    logits[2, : vocab_size // 2] = -INF
    tokens = torch.randint(0, vocab_size, (6,))
    tokens[3] = logits[3].argmax()
    expected = TopLogprobs(num).reference(logits, tokens)
    got = top_logprobs(strided(logits), tokens, num)
    assert got[0].equal(expected[0])
    torch.testing.assert_close(got[1], expected[1], rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(got[2], expected[2], rtol=1e-6, atol=2e-6)
    assert got[3].equal(expected[3])
    assert got[3][3] == 1
    assert got[0].shape == (6, num)
