"""Kernels of gates and of norms by head: run by test_kernels_interpreter.py, or with TRITON_INTERPRET=1."""

import pytest
import torch
from torch import Tensor

from fastkernels.env import triton_interpreted
from fastkernels.errors import UnsupportedError

if not triton_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1; test_kernels_interpreter.py sets it", allow_module_level=True)

from fastkernels.kernels import head_rows
from fastkernels.kernels.fused_gdn_gating import fused_gdn_gating
from fastkernels.kernels.gelu_and_mul import gelu_and_mul
from fastkernels.kernels.l2_norm import l2_norm
from fastkernels.kernels.rms_norm_gated import rms_norm_gated
from fastkernels.kernels.sigmoid_mul import sigmoid_mul
from fastkernels.tasks.baseline.L1.fused_gdn_gating import FusedGDNGating
from fastkernels.tasks.baseline.L1.gelu_and_mul import GeluAndMul
from fastkernels.tasks.baseline.L1.l2_norm import L2Norm
from fastkernels.tasks.baseline.L1.rms_norm_gated import RMSNormGated
from fastkernels.tasks.baseline.L1.sigmoid_mul import SigmoidMul

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
DTYPES = [torch.float32, torch.float16]
RELATIVE = {torch.float32: 3e-6, torch.float16: 2.0**-11 * 1.02}
NAN = float("nan")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every torch.empty is filled with NaN, so that an element no kernel wrote shows."""
    torch.manual_seed(0)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(NAN))


def assert_near(got: Tensor, exact: Tensor, scale: Tensor | None = None) -> None:
    """scale: what the error is relative to, where terms cancel."""
    assert got.shape == exact.shape
    assert got.is_contiguous()
    bound = (exact if scale is None else scale).abs() * RELATIVE[got.dtype]
    error = (got.double() - exact).abs()
    tiny = 6.1e-8 if got.dtype == torch.float16 else 1e-30
    assert bool((error <= bound + tiny).all()), float((error / (bound + tiny)).max())


def heads(num_tokens: int, num_heads: int, size: int, dtype: torch.dtype) -> Tensor:
    """Every second head of a part of wider rows, NaN around it: no view makes rows of one stride of it."""
    buffer = torch.full((num_tokens, 2 * num_heads * size + 5), NAN, dtype=dtype)
    view = buffer[:, 3 : 3 + 2 * num_heads * size].unflatten(1, (num_heads, 2 * size))[..., size:]
    view.copy_(torch.randn(view.shape))
    return view


LAYOUTS = {
    "heads": lambda size, dtype: heads(5, 3, size, dtype),
    "rows": lambda size, dtype: torch.full((7, size + 9), NAN, dtype=dtype)[:, 2 : 2 + size].normal_(),
    "turned": lambda size, dtype: torch.randn(size, 4).to(dtype).t(),
    "one": lambda size, dtype: torch.randn(size).to(dtype),
    "many axes": lambda size, dtype: torch.randn(2, 3, 2, size).to(dtype).transpose(0, 1),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "group_size"), [(64, 16), (257, 257), (1024, 512), (21, 7), (1, 1)])
def test_gated_norm_equals_its_definition(
    size: int, group_size: int, layout: str, norm_before_gate: bool, dtype: torch.dtype
) -> None:
    op = RMSNormGated(size, 1e-5, group_size, norm_before_gate)
    weight = torch.randn(size).to(dtype)
    op.weight.data.copy_(weight)
    x, gate = LAYOUTS[layout](size, dtype), 3 * LAYOUTS[layout](size, dtype)
    exact = op.double().reference(x.double(), gate.double()).detach()
    assert_near(rms_norm_gated(x, gate, weight, 1e-5, group_size, norm_before_gate), exact)
    apart = gate.clone(memory_format=torch.contiguous_format)
    assert_near(rms_norm_gated(x, apart, weight.float(), 1e-5, group_size, norm_before_gate), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_eps_in_root", [False, True])
@pytest.mark.parametrize("size", [1, 64, 257, 2048])
def test_l2_norm_equals_its_definition(size: int, is_eps_in_root: bool, layout: str, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout](size, dtype)
    if is_eps_in_root:
        rows = x.shape[:-1]
        x *= torch.logspace(-4, 0, rows.numel()).view(*rows, 1).to(dtype)  # eps tells in short rows
    assert_near(l2_norm(x, 1e-6, is_eps_in_root), L2Norm(1e-6, is_eps_in_root).reference(x.double()))
    assert not l2_norm(torch.zeros(3, size, dtype=dtype), 1e-6, is_eps_in_root).any()


def test_short_rows_share_a_program_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    assert head_rows.row_tile("norm", 3, 128, device)[0] == 1
    assert head_rows.row_tile("norm", 10_000, 128, device) == (8, 128, 2)
    assert head_rows.row_tile("norm", 10_000, 8192, device) == (1, 8192, 16)
    x = torch.randn(1003, 24)
    assert_near(l2_norm(x, 1e-12), L2Norm().reference(x.double()))
    with pytest.raises(UnsupportedError, match="at most 16384 numbers, got 40000"):
        l2_norm(torch.zeros(1, 40_000), 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_a_row", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 64, 257, 2051])
def test_sigmoid_mul_equals_its_definition(size: int, layout: str, is_a_row: bool, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout](size, dtype)
    gate = 4 * LAYOUTS[layout](1 if is_a_row else size, dtype)
    exact = SigmoidMul(size, gate.shape[-1]).reference(x.double(), gate.double())
    assert_near(sigmoid_mul(x, gate), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_tokens", "num_heads"), [(1, 32), (13, 19), (7, 1)])
def test_gdn_gates_equal_their_definition(num_tokens: int, num_heads: int, dtype: torch.dtype) -> None:
    """Also where the softplus is an exponential alone, and where it is the number itself."""
    ba = torch.full((num_tokens, 2 * num_heads + 3), NAN, dtype=dtype)
    ba[:, : 2 * num_heads] = 8 * torch.randn(num_tokens, 2 * num_heads)
    b, a = ba[:, :num_heads], ba[:, num_heads : 2 * num_heads]
    a[0, 0], b[0, 0] = -40, -60
    a[-1, -1], b[-1, -1] = 60, 40
    decay, bias = torch.randn(2, num_heads)
    got = fused_gdn_gating(decay, a, b, bias)
    exact = FusedGDNGating().reference(decay.double(), a.double(), b.double(), bias.double())
    for one, wanted in zip(got, exact, strict=True):
        assert one.dtype == torch.float32
        assert_near(one, wanted, wanted.abs() * (1 + (a.double() + bias.double()).abs()))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("gate_is_last", [False, True])
@pytest.mark.parametrize("d", [1, 64, 257, 1031])
def test_gelu_and_mul_equals_its_definition(d: int, gate_is_last: bool, approximate: str, dtype: torch.dtype) -> None:
    x = torch.full((5, 2 * d + 3), NAN, dtype=dtype)[:, : 2 * d]
    x.copy_(2 * torch.randn(5, 2 * d))
    up = x.double().chunk(2, -1)[0 if gate_is_last else 1]
    exact = GeluAndMul(approximate, gate_is_last).reference(x.double())
    # 1 + erf cancels for negative gates: as exact as the gate's size, as in any float32 gelu.
    assert_near(gelu_and_mul(x, approximate, gate_is_last), exact, exact.abs() + 0.2 * up.abs())
    ends = torch.tensor([[-3e4, 3e4, 2.0, 3.0]], dtype=dtype)
    assert gelu_and_mul(ends, approximate, False).tolist() == [[0.0, float(torch.tensor(9e4, dtype=dtype))]]


def test_gates_of_nothing_are_empty_and_float64_is_refused() -> None:
    none = torch.zeros(0, 3, 8)
    assert rms_norm_gated(none, none, torch.ones(8), 1e-5, 8, True).shape == none.shape
    assert l2_norm(none, 1e-6).shape == sigmoid_mul(none, none).shape == none.shape
    assert gelu_and_mul(none, "tanh", False).shape == (0, 3, 4)
    assert fused_gdn_gating(torch.ones(8), none[:, 0], none[:, 0], torch.ones(8))[0].shape == (0, 8)
    x = torch.zeros(2, 8).double()
    for call in (
        lambda: rms_norm_gated(x, x, torch.ones(8), 1e-5, 8, True),
        lambda: l2_norm(x, 1e-6),
        lambda: sigmoid_mul(x, x),
        lambda: gelu_and_mul(x, "tanh", False),
        lambda: fused_gdn_gating(torch.ones(8), x, x, torch.ones(8)),
    ):
        with pytest.raises(UnsupportedError, match="float64"):
            call()
    with pytest.raises(UnsupportedError, match="odd size: 3"):
        gelu_and_mul(torch.zeros(1, 3), "none", False)
