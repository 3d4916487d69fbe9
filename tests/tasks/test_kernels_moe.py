"""Kernels of experts against definitions: run by test_kernels_interpreter.py, or with TRITON_INTERPRET=1."""

import pytest
import torch
from torch import Tensor
from turns import in_turn

from fastkernels.env import triton_interpreted
from fastkernels.errors import UnsupportedError

if not triton_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1; test_kernels_interpreter.py sets it", allow_module_level=True)

from fastkernels.kernels import moe_grouped_gemm as gemm
from fastkernels.kernels import mxfp4_moe as mxfp4
from fastkernels.kernels.moe_align import moe_align
from fastkernels.kernels.moe_sum import moe_sum
from fastkernels.kernels.mxfp4_moe import PackedTile, mxfp4_moe, unpack_mxfp4
from fastkernels.kernels.swiglu_oai_and_mul import swiglu_oai_and_mul
from fastkernels.kernels.topk_softmax import topk_softmax
from fastkernels.tasks.baseline.expert_gemm import align, padded_capacity
from fastkernels.tasks.baseline.L1.moe_grouped_gemm import MoEGroupedGemm
from fastkernels.tasks.baseline.L1.mxfp4_moe import MXFP4MoE, dequantize_mxfp4
from fastkernels.tasks.baseline.L1.swiglu_oai_and_mul import SwigluOAIAndMul
from fastkernels.tasks.baseline.L1.topk_softmax import TopKSoftmax

pytestmark = [
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]
DTYPES = [torch.float32, torch.float16]
Sizes = tuple[int, int, int, int, int, bool]
"""Tokens, experts, experts of a token, inputs, outputs; whether there is a bias."""
GEMMS = [(1, 8, 2, 64, 96, False), (21, 4, 2, 256, 130, True), (40, 11, 1, 53, 37, True)]
PACKED = [(1, 8, 2, 64, 96, False), (21, 4, 2, 160, 70, True), (40, 7, 1, 32, 37, True)]
ROUNDING = {torch.float32: 1e-6, torch.float16: 2.0**-10}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every torch.empty is filled with NaN or a huge number, so that an element no kernel wrote shows."""
    torch.manual_seed(0)
    empty = torch.empty

    def fill(x: Tensor) -> Tensor:
        return x.fill_(float("nan")) if x.is_floating_point() else x.fill_(2**30)

    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: fill(empty(*args, **kwargs)))


def drawn_ids(num_tokens: int, num_experts: int, top_k: int, num_used: int, first: int = 0) -> Tensor:
    """Distinct experts of each token, of the first num_used alone; counted from `first`, those below it left out."""
    ids = torch.stack([torch.randperm(num_used)[:top_k] for _ in range(num_tokens)]).int() - first
    return ids.clamp(min=-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (61, 7), (512, 10), (1, 1), (4, 4)])
def test_topk_softmax_equals_its_definition(
    num_experts: int, top_k: int, renormalize: bool, dtype: torch.dtype
) -> None:
    wide = torch.randn(13, num_experts + 5).mul(3).to(dtype)
    wide[3, : num_experts + 1] = 1.0  # ties: the lower expert first
    logits = wide[:, 1 : num_experts + 1]
    weights, ids = topk_softmax(logits, top_k, renormalize)
    wanted, wanted_ids = TopKSoftmax(num_experts, top_k, renormalize).reference(logits.double())
    assert torch.equal(ids, wanted_ids)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.double(), wanted, rtol=3e-6, atol=1e-9)


def test_topk_softmax_of_nan_and_infinite_scores_names_distinct_experts_that_exist() -> None:
    logits = torch.randn(4, 9)
    logits[0], logits[1], logits[2, 3:] = float("nan"), float("-inf"), float("nan")
    _, ids = topk_softmax(logits, 4, True)
    assert ((ids >= 0) & (ids < 9)).all()
    assert all(len(set(row.tolist())) == 4 for row in ids)


@pytest.mark.parametrize("block_size", [1, 5, 16, 128])
@pytest.mark.parametrize(("num_tokens", "num_experts", "top_k"), [(1, 8, 2), (50, 8, 2), (37, 67, 7), (300, 5, 5)])
def test_moe_align_equals_its_definition(num_tokens: int, num_experts: int, top_k: int, block_size: int) -> None:
    for num_used, first in ((num_experts, 0), (top_k, 0), (num_experts, 2), (top_k, num_experts)):
        ids = drawn_ids(num_tokens, num_experts, top_k, num_used, first)
        wanted = align(ids, num_experts, block_size)
        capacity = padded_capacity(ids.numel(), num_experts, block_size)
        for one, other in zip(moe_align(ids, num_experts, block_size, capacity), wanted, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_tokens", "top_k", "hidden_size"), [(1, 1, 64), (7, 10, 257), (3, 2, 1030)])
def test_moe_sum_equals_its_definition(num_tokens: int, top_k: int, hidden_size: int, dtype: torch.dtype) -> None:
    x, weights = torch.randn(num_tokens, top_k, hidden_size).to(dtype), torch.rand(num_tokens, top_k)
    terms = x.double() * weights.double()[..., None]
    error = (moe_sum(x, weights).double() - terms.sum(1)).abs()
    assert (error <= ROUNDING[dtype] * terms.abs().sum(1)).all()


@pytest.mark.parametrize(("sizes", "block_size", "dtype"), in_turn(GEMMS, [1, 16, 20, 64], last=DTYPES))
def test_grouped_gemm_equals_its_definition(sizes: Sizes, block_size: int, dtype: torch.dtype) -> None:
    num_tokens, num_experts, top_k, num_inputs, num_outputs, has_bias = sizes
    op = MoEGroupedGemm(num_experts, num_inputs, num_outputs, has_bias, top_k).to(dtype)
    x = torch.randn(num_tokens, num_inputs + 3).to(dtype)[:, :num_inputs]
    alignment = align(drawn_ids(num_tokens, num_experts, top_k, max(top_k, num_experts - 1)), num_experts, block_size)
    y = gemm.moe_grouped_gemm(x, op.weight.data, None if op.bias is None else op.bias.data, *alignment, top_k)
    wanted = op.double().reference(x.double(), *alignment)
    assert ((y.double() - wanted).abs() <= ROUNDING[dtype] * (wanted.abs() + 1.0)).all()


@pytest.mark.parametrize("kind", ["float", "grouped", "packed", "turned", "packed_fp32"])
@pytest.mark.parametrize("first", [2, 4])
@pytest.mark.parametrize("block_size", [5, 32])
def test_slots_that_are_left_out_are_zero_and_get_no_bias(block_size: int, first: int, kind: str) -> None:
    """Those of two experts of five, or of all."""
    is_packed = kind in ("packed", "turned", "packed_fp32")
    dtype = torch.float16 if kind in ("packed", "turned") else torch.float32
    op = (MXFP4MoE if is_packed else MoEGroupedGemm)(3, 64, 70, True, 2).to(dtype)
    ids = drawn_ids(37, 5 if first == 2 else 4, 2, 5 if first == 2 else 4, first)
    x, alignment = torch.randn(37, 64).to(dtype), align(ids, 3, block_size)
    assert op.bias is not None
    if isinstance(op, MXFP4MoE):
        tile = PackedTile(64, 128, 4, 3, kind == "turned") if dtype == torch.float16 else None
        weights = (op.weight_blocks.data, op.weight_scales.data, op.bias.data)
        y = mxfp4_moe(x, *weights, *alignment, 2, tile=tile)
    else:
        product = gemm.by_grouped_mm if kind == "grouped" else gemm.moe_grouped_gemm
        y = product(x, op.weight.data, op.bias.data, *alignment, 2)
    is_left_out = (ids < 0).flatten()
    assert is_left_out.all() if first == 4 else 0 < is_left_out.sum() < len(y)
    assert (y[is_left_out] == 0).all()
    wanted = op.double().reference(x.double(), *alignment)
    assert ((y.double() - wanted).abs() <= max(ROUNDING[dtype], 1e-6) * (wanted.abs() + 2.0)).all()


def test_experts_over_more_ranks_ask_later_for_a_grouped_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """An expert gets as many rows as on one rank, though a rank has fewer experts for all slots."""
    op, x = MoEGroupedGemm(2, 64, 48), torch.randn(40, 64)
    alignment = align(drawn_ids(40, 4, 1, 4, 2), 2, 16)
    monkeypatch.setattr(gemm, "GROUPED_MM_ROWS", 20)
    monkeypatch.setattr(gemm, "supports_grouped_mm", lambda x, weight: True)
    monkeypatch.setattr(gemm, "by_grouped_mm", lambda *arguments: "grouped")
    assert gemm.moe_grouped_gemm(x, op.weight.data, None, *alignment, 1) == "grouped"
    tiled = gemm.moe_grouped_gemm(x, op.weight.data, None, *alignment, 1, ep_size=2)
    torch.testing.assert_close(tiled, op.reference(x, *alignment), rtol=1e-5, atol=1e-5)


def test_grouped_gemm_refuses_blocks_beyond_its_tiles() -> None:
    with pytest.raises(UnsupportedError, match="at most 128 rows here, got block_size 256"):
        gemm.tile_rows(256)


@pytest.mark.parametrize(("sizes", "block_size", "dtype"), in_turn(PACKED, [1, 16, 64], last=DTYPES))
def test_mxfp4_moe_equals_its_definition(sizes: Sizes, block_size: int, dtype: torch.dtype) -> None:
    num_tokens, num_experts, top_k, num_inputs, num_outputs, has_bias = sizes
    op = MXFP4MoE(num_experts, num_inputs, num_outputs, has_bias, top_k).to(dtype)
    x = torch.randn(num_tokens, num_inputs + 3).to(dtype)[:, :num_inputs]
    alignment = align(drawn_ids(num_tokens, num_experts, top_k, max(top_k, num_experts - 1)), num_experts, block_size)
    bias = None if op.bias is None else op.bias.data
    y = mxfp4_moe(x, op.weight_blocks.data, op.weight_scales.data, bias, *alignment, top_k)
    wanted = op.double().reference(x.double(), *alignment)
    assert ((y.double() - wanted).abs() <= ROUNDING[dtype] * (wanted.abs() + 2.0)).all()


def test_mxfp4_moe_unpacks_every_code_under_extreme_scales() -> None:
    """One expert, one output, an input at a time: what comes out is the weight."""
    blocks = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    scales = torch.tensor([1, 2, 64, 100, 120, 126, 127, 128, 130, 140, 160, 180, 200, 220, 240, 250]).byte()
    weight = dequantize_mxfp4(blocks, scales.reshape(1, 1, 16), torch.float32)
    alignment = align(torch.zeros(512, 1, dtype=torch.int32), 1, 64)
    y = mxfp4_moe(torch.eye(512), blocks, scales.reshape(1, 1, 16), None, *alignment, 1)
    assert torch.equal(y.flatten(), weight.flatten())


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_unpack_mxfp4_equals_the_definition_for_every_byte_and_scale() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1, 255, 1, 1)
    scales = torch.arange(255).byte()[None, :, None].repeat(1, 1, 16)
    wanted = dequantize_mxfp4(blocks, scales, torch.float64).half()
    assert torch.equal(unpack_mxfp4(blocks, scales, torch.float16), wanted)


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("block_size", [16, 128])
def test_mxfp4_moe_by_tiles_of_either_side_that_do_not_divide_the_inputs(block_size: int, is_turned: bool) -> None:
    op = MXFP4MoE(4, 352, 70, True, 2).half()
    x, alignment = torch.randn(150, 352).half(), align(drawn_ids(150, 4, 2, 3), 4, block_size)
    assert op.bias is not None
    y = mxfp4_moe(
        *(x, op.weight_blocks.data, op.weight_scales.data, op.bias.data, *alignment, 2),
        tile=PackedTile(64, 128, 4, 3, is_turned),
    )
    wanted = op.double().reference(x.double(), *alignment)
    assert ((y.double() - wanted).abs() <= ROUNDING[torch.float16] * (wanted.abs() + 2.0)).all()


def test_mxfp4_moe_of_many_rows_an_expert_unpacks_and_asks_for_a_grouped_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    op = MXFP4MoE(3, 64, 48, True, 2).half()
    x, alignment = torch.randn(40, 64).half(), align(drawn_ids(40, 3, 2, 3), 3, 16)
    assert op.bias is not None
    arguments = (x, op.weight_blocks.data, op.weight_scales.data, op.bias.data, *alignment, 2)
    tiled = mxfp4_moe(*arguments)
    monkeypatch.setattr(mxfp4, "GROUPED_MM_ROWS", 26)
    monkeypatch.setattr(mxfp4, "supports_grouped_mm", lambda x, weight: True)
    monkeypatch.setattr(mxfp4, "tile_rows", None)
    torch.testing.assert_close(mxfp4_moe(*arguments), tiled, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "alpha", "limit"), [(1, 1.702, 7.0), (257, 1.0, 1.5), (1031, 1.702, 7.0)])
def test_swiglu_oai_and_mul_equals_its_definition(d: int, alpha: float, limit: float, dtype: torch.dtype) -> None:
    x = torch.randn(3, 2 * d + 5).mul(4).to(dtype)[:, : 2 * d]
    wanted = SwigluOAIAndMul(alpha, limit).reference(x.double())
    error = (swiglu_oai_and_mul(x, alpha, limit).double() - wanted).abs()
    assert (error <= ROUNDING[dtype] * (wanted.abs() + 1e-2)).all()


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("num_tokens", "num_experts", "top_k"), [(1, 8, 2), (90, 6, 3)])
def test_torch_grouped_mm_takes_over_with_the_same_result(
    num_tokens: int, num_experts: int, top_k: int, has_bias: bool
) -> None:
    op = MoEGroupedGemm(num_experts, 64, 48, has_bias, top_k)
    x = torch.randn(num_tokens, 64)
    alignment = align(drawn_ids(num_tokens, num_experts, top_k, max(top_k, num_experts - 1)), num_experts, 16)
    bias = None if op.bias is None else op.bias.data
    y = gemm.by_grouped_mm(x, op.weight.data, bias, *alignment, top_k)
    torch.testing.assert_close(y, op.reference(x, *alignment), rtol=1e-5, atol=1e-5)
