"""Kernels of gates and of norms by head on a GPU at the models' sizes, against their definitions in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastkernels.tasks.baseline.L1.dfl_boxes import DFLBoxes
from fastkernels.tasks.baseline.L1.fused_gdn_gating import FusedGDNGating
from fastkernels.tasks.baseline.L1.gelu_and_mul import GeluAndMul
from fastkernels.tasks.baseline.L1.l2_norm import L2Norm
from fastkernels.tasks.baseline.L1.rms_norm_gated import RMSNormGated
from fastkernels.tasks.baseline.L1.sigmoid import Sigmoid
from fastkernels.tasks.baseline.L1.sigmoid_mul import SigmoidMul
from fastkernels.tasks.baseline.L1.silu import SiLU

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ROUNDING = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12, torch.float32: 2e-6}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every torch.empty is NaN: an element that no kernel wrote shows."""
    torch.manual_seed(0)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(float("nan")))


def randn(*shape: int, dtype: torch.dtype) -> Tensor:
    return 2 * torch.randn(*shape, device="cuda", dtype=dtype)


def assert_near(got: Tensor, exact: Tensor, scale: Tensor | None = None) -> None:
    bound = 2.05 * ROUNDING[got.dtype] * (exact if scale is None else scale).abs()
    error = (got.double() - exact).abs()
    assert bool((error <= bound + (6.1e-8 if got.dtype == torch.float16 else 1e-30)).all()), float(
        (error / bound).max()
    )


CALLS: dict[str, Callable[[int, torch.dtype], tuple[torch.nn.Module, tuple[Tensor, ...]]]] = {
    "norm of heads": lambda n, dtype: (
        RMSNormGated(128, 1e-6, norm_before_gate=True),
        (randn(n, 32, 128, dtype=dtype), randn(n, 12288, dtype=dtype)[:, 8192:].unflatten(1, (32, 128))),
    ),
    "norm of groups": lambda n, dtype: (RMSNormGated(8192, 1e-5, 1024), tuple(randn(2, n, 8192, dtype=dtype))),
    "norm of a row": lambda n, dtype: (RMSNormGated(8191), tuple(randn(2, n, 8191, dtype=dtype))),
    "length one": lambda n, dtype: (
        L2Norm(1e-6, is_eps_in_root=True),
        (randn(n, 12288, dtype=dtype)[:, :4096].unflatten(1, (32, 128)),),
    ),
    "gates of heads": lambda n, dtype: (
        SigmoidMul(256),
        (randn(n, 16, 256, dtype=dtype), randn(n, 32, 256, dtype=dtype)[:, 1::2]),
    ),
    "a gate a row": lambda n, dtype: (SigmoidMul(2051, 1), (randn(n, 2051, dtype=dtype), randn(n, 1, dtype=dtype))),
    "sigmoid": lambda n, dtype: (Sigmoid(), (randn(n, 257, dtype=dtype),)),
    "silu": lambda n, dtype: (SiLU(), (randn(n, 257, dtype=dtype),)),
}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("num_tokens", [1, 3, 4099])
@pytest.mark.parametrize("call", CALLS)
def test_a_gate_equals_its_definition(call: str, num_tokens: int, dtype: torch.dtype) -> None:
    op, given = CALLS[call](num_tokens, dtype)
    op.cuda().to(dtype)
    for parameter in op.parameters():
        parameter.data.normal_()
    with torch.no_grad():
        got = op(*given)
        exact = op.double().reference(*(x.double() for x in given))
    assert_near(got, exact)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("approximate", "gate_is_last"), [("none", True), ("tanh", False)])
@pytest.mark.parametrize("d", [5120, 16384, 1031])
def test_gelu_and_mul_equals_its_definition(d: int, approximate: str, gate_is_last: bool, dtype: torch.dtype) -> None:
    op, x = GeluAndMul(approximate, gate_is_last), randn(301, 2 * d + 8, dtype=dtype)[:, : 2 * d]
    exact = op.reference(x.double())
    assert_near(op(x), exact, exact.abs() + 0.2 * x.double().chunk(2, -1)[0 if gate_is_last else 1].abs())


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("num_tokens", [1, 4099])
def test_gdn_gates_equal_their_definition(num_tokens: int, dtype: torch.dtype) -> None:
    b, a = (8 * randn(num_tokens, 64, dtype=dtype)).chunk(2, dim=-1)
    decay, bias = torch.randn(2, 32, device="cuda")
    exact = FusedGDNGating().reference(decay.double(), a.double(), b.double(), bias.double())
    for one, wanted in zip(FusedGDNGating()(decay, a, b, bias), exact, strict=True):
        assert one.dtype == torch.float32
        assert_near(one, wanted, wanted.abs() * (1 + (a.double() + bias.double()).abs()))


@pytest.mark.parametrize("dtype", ROUNDING)
def test_boxes_equal_their_definition(dtype: torch.dtype) -> None:
    x = randn(3, 8400, 64, dtype=dtype)[:, :6400].transpose(1, 2).unflatten(2, (80, 80))
    op = DFLBoxes(16, 8)
    torch.testing.assert_close(op(x).double(), op.reference(x.double()), rtol=1e-5, atol=1e-4)
