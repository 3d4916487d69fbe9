"""Mamba-2's chunk scan in stages on a GPU: bf16, over several chunks, beside the scan in sequence."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fastkernels.kernels import mamba_chunk_scan as kernels
from fastkernels.kernels.mamba_chunk_scan import mamba_chunk_scan
from fastkernels.kernels.mamba_chunk_scan_stages import ScanPlan, scan_in_stages
from fastkernels.tasks.baseline.L1.mamba_chunk_scan import chunked_scan, discretize
from fastkernels.tasks.baseline.state_slots import decay_parameters

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
LIMIT = (0.0, float("inf"))
PLANS = {
    "default": ScanPlan(),
    "passed": ScanPlan(is_passed=True),
    "chunks of 64": ScanPlan(64, outputs_warps=4),
}
BATCHES = {"about chunks": [1, 63, 64, 65, 127, 128, 129, 257], "long": [2048, 0, 700], "short": [3] * 50 + [300]}
SIZES = {"Codestral": (16, 2, 64, 128), "odd": (3, 1, 70, 100), "one group": (40, 1, 128, 64)}
WORSE = 1.25
"""Of the scan in sequence: roundings are as many, of other sums."""


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every torch.empty is NaN: an element that no kernel wrote shows."""
    torch.manual_seed(0)
    empty = torch.empty

    def fill(*args: object, **kwargs: object) -> Tensor:
        x = empty(*args, **kwargs)  # type: ignore[call-overload]
        return x.fill_(float("nan")) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", fill)


def draw(lengths: list[int], sizes: tuple[int, int, int, int]) -> list[Tensor]:
    num_heads, num_groups, head_dim, state_size = sizes
    num_rows, num_seqs = sum(lengths), len(lengths)
    widths = [num_heads * head_dim, num_groups * state_size, num_groups * state_size]
    xbc = torch.randn(num_rows, sum(widths), device="cuda").bfloat16()
    x, b, c = xbc.split(widths, dim=-1)
    drawn = decay_parameters(num_heads, torch.Generator().manual_seed(1))
    return [
        x.unflatten(-1, (num_heads, head_dim)),
        torch.randn(num_rows, num_heads + 8, device="cuda").bfloat16()[:, 8:],
        drawn["A_log"].cuda(),
        b.unflatten(-1, (num_groups, state_size)),
        c.unflatten(-1, (num_groups, state_size)),
        torch.randn(num_heads, device="cuda"),
        drawn["dt_bias"].cuda(),
        torch.randn(num_seqs + 1, num_heads, head_dim, state_size, device="cuda"),
        torch.tensor([0, *lengths], device="cuda").cumsum(0).int(),
        torch.randperm(num_seqs, device="cuda").int() + 1,
        torch.arange(num_seqs, device="cuda") % 2 == 0,
    ]


def define(
    x: Tensor, dt: Tensor, a_log: Tensor, b: Tensor, c: Tensor, d: Tensor, bias: Tensor, *told: Tensor
) -> Tensor:
    """In float64, in chunks of torch's; writes states."""
    states, starts, slots, holds = told
    x, b, c = x.double(), b.double(), c.double()
    step, decay = discretize(dt, a_log, bias, LIMIT, torch.float64)
    y = torch.zeros_like(x)
    for (start, end), slot, has_state in zip(pairwise(starts.tolist()), slots.tolist(), holds.tolist(), strict=True):
        if start < end:
            state = states[slot] * (1.0 if has_state else 0.0)
            some = slice(start, end)
            y[some] = chunked_scan(x[some], step[some], decay[some], b[some], c[some], d, state)
            states[slot] = state
    return y


def error(got: Tensor, wanted: Tensor) -> float:
    """Of the norm, and never NaN."""
    assert got.isfinite().all()
    return float((got.double() - wanted).norm() / wanted.norm())


def worst_row(got: Tensor, wanted: Tensor) -> float:
    return float(((got.double() - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp(min=wanted.std())).max())


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_stages_err_no_more_than_the_scan_in_sequence(
    plan: str, sizes: str, batch: str, state_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = draw(BATCHES[batch], SIZES[sizes])
    before = given[7].to(state_dtype)
    wanted_states = before.double()
    wanted = define(*given[:7], wanted_states, *given[8:])
    monkeypatch.setattr(kernels, "scan_plan", lambda *_: None)
    slow_states, fast_states = before.clone(), before.clone()
    slow = mamba_chunk_scan(*given[:7], slow_states, *given[8:], LIMIT)
    fast = scan_in_stages(PLANS[plan], *given[:7], fast_states, *given[8:], LIMIT)
    assert error(fast, wanted) <= WORSE * error(slow, wanted) <= 0.01
    assert error(fast_states, wanted_states) <= WORSE * error(slow_states, wanted_states) <= 0.01
    assert torch.equal(fast_states[0], before[0])
    assert worst_row(fast, wanted) <= WORSE * worst_row(slow, wanted)
