"""Mamba-2's chunk scan in stages against float64 definitions: run by test_kernels_interpreter.py, or
TRITON_INTERPRET=1."""

from itertools import pairwise, product

import pytest
import torch
from torch import Tensor
from turns import in_turn

from fastkernels.env import triton_interpreted

if not triton_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1; test_kernels_interpreter.py sets it", allow_module_level=True)

from fastkernels.kernels.mamba_chunk_scan_stages import ScanPlan, scan_in_stages, scan_plan
from fastkernels.tasks.baseline.L1.mamba_chunk_scan import MambaChunkScan
from fastkernels.tasks.baseline.state_slots import decay_parameters

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
RELATIVE = {torch.float32: 1.5e-5, torch.float16: 2.0**-11 * 1.05}
"""Of a tensor's root mean square, per element: sums in float32 and one rounding to the output's dtype."""
BATCHES: dict[str, tuple[list[int], list[bool]]] = {
    "one token": ([1], [False]),
    "about a chunk": ([31, 32, 33, 65], [True, False, True, True]),
    "about half of one": ([15, 16, 17], [True, False, True]),
    "an empty one between": ([5, 0, 37], [True, True, False]),
    "empty ones about": ([0, 40, 0], [True, True, True]),
    "many chunks": ([150, 3], [True, True]),
    "many short ones": ([1, 2, 1, 16, 3, 1], [True, False] * 3),
}
PLANS = {
    "in sequence": ScanPlan(32, 16, 32, is_passed=False),
    "passed": ScanPlan(32, 16, 32, is_passed=True),
    "small tiles": ScanPlan(32, 2, 16, is_passed=False),
}
Sizes = tuple[int, int, int, int]
SIZES: list[Sizes] = [(4, 2, 16, 32), (3, 1, 70, 19), (5, 1, 5, 16)]
"""Heads, groups, head_dim, state_size."""
DRAWN = list(product(SIZES, (torch.float32, torch.float16)))


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every torch.empty is filled with NaN, so that an element no kernel wrote shows."""
    torch.manual_seed(0)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))


def strided(*shape: int, dtype: torch.dtype) -> Tensor:
    """Rows inside wider ones, which hold NaN."""
    wide = torch.full((shape[0] + 9, *shape[1:-1], shape[-1] + 5), float("nan"), dtype=dtype)
    wide[: shape[0], ..., : shape[-1]] = torch.randn(shape).to(dtype)
    return wide[: shape[0], ..., : shape[-1]]


def draw(batch: str, sizes: Sizes, dtype: torch.dtype, state_dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Arguments of MambaChunkScan: NaN in slots that hold nothing, or are nobody's."""
    num_heads, num_groups, head_dim, state_size = sizes
    lengths, holds = BATCHES[batch]
    num_rows, num_seqs = sum(lengths), len(lengths)
    drawn = decay_parameters(num_heads, torch.Generator().manual_seed(1))
    slots = torch.arange(num_seqs).flip(0).int() + 1
    states = torch.full((num_seqs + 2, num_heads, head_dim, state_size), float("nan"), dtype=state_dtype)
    held = slots[torch.tensor(holds)].long()
    states[held] = torch.randn(len(held), *states.shape[1:]).to(state_dtype)
    return {
        "x": strided(num_rows, num_heads, head_dim, dtype=dtype),
        "dt": strided(num_rows, num_heads, dtype=dtype),
        "A_log": drawn["A_log"].to(dtype),
        "B": strided(num_rows, num_groups, state_size, dtype=dtype),
        "C": strided(num_rows, num_groups, state_size, dtype=dtype),
        "D": torch.randn(num_heads).to(dtype),
        "dt_bias": drawn["dt_bias"].to(dtype),
        "ssm_states": states,
        "query_start_loc": torch.tensor([0, *lengths]).cumsum(0).int(),
        "state_indices": slots,
        "has_initial_state": torch.tensor(holds),
    }


def check(given: dict[str, Tensor], plan: ScanPlan, limit: tuple[float, float]) -> None:
    exact = {name: t.double() if t.is_floating_point() else t for name, t in given.items()}
    exact["ssm_states"] = exact["ssm_states"].clone()
    wanted = MambaChunkScan(64, limit).reference(**exact, max_query_len=0)
    got = scan_in_stages(plan, *given.values(), limit, is_exact=True)
    for one, right in ((got, wanted), (given["ssm_states"], exact["ssm_states"])):
        assert one.shape == right.shape
        assert torch.equal(one.isnan(), right.isnan())
        scale = right.nan_to_num().square().mean().sqrt()
        error = (one.double() - right).nan_to_num().abs()
        least = scale if one.dtype == torch.float32 else 0.1 * scale
        bound = RELATIVE[one.dtype] * torch.maximum(right.nan_to_num().abs(), least)
        assert (error <= bound).all(), f"worst ratio to the bound: {(error / bound).max()}"


@pytest.mark.parametrize(("batch", "plan", "drawn"), in_turn(BATCHES, PLANS, last=DRAWN))
def test_stages_equal_the_recurrence(batch: str, plan: str, drawn: tuple[Sizes, torch.dtype]) -> None:
    check(draw(batch, *drawn), PLANS[plan], (0.001, 0.5))


@pytest.mark.parametrize("plan", PLANS)
def test_states_of_16_bits_are_rounded_once_a_prompt(plan: str) -> None:
    given = draw("about a chunk", SIZES[0], torch.float16, torch.float16)
    check(given, PLANS[plan], (0.001, 0.5))


@pytest.mark.parametrize("plan", PLANS)
def test_small_decays_are_known_behind_a_large_one(plan: str) -> None:
    """Of sums near 3,000 fp32 holds differences to 1e-4 alone."""
    given = draw("many chunks", SIZES[0], torch.float32)
    given["dt"] = torch.where(torch.arange(len(given["dt"]))[:, None] % 8 == 1, 3000.0, -4.0).repeat(1, 4)
    given["A_log"] = torch.zeros(4)
    check(given, PLANS[plan], (0.0, float("inf")))


@pytest.mark.parametrize("plan", PLANS)
def test_steps_of_nothing_keep_the_state_and_add_nothing(plan: str) -> None:
    given = draw("about a chunk", SIZES[0], torch.float32)
    given["dt"] = torch.full_like(given["dt"], -1e30)
    given["dt"][::5] = 0.0
    check(given, PLANS[plan], (0.0, float("inf")))
    given["dt"][:] = -1e30
    before = given["ssm_states"].clone()
    check(given, PLANS[plan], (0.0, float("inf")))
    held = given["state_indices"][given["has_initial_state"]].long()
    assert torch.equal(given["ssm_states"][held], before[held])


@pytest.mark.parametrize("plan", PLANS)
def test_a_chunk_that_forgets_all_keeps_nothing_of_the_state(plan: str) -> None:
    given = draw("many chunks", SIZES[0], torch.float32)
    given["A_log"] = torch.full((4,), 12.0)
    check(given, PLANS[plan], (0.5, 0.5))


def test_a_prompt_cut_in_two_ends_as_the_whole() -> None:
    """The second part begins with what the first left in its slot."""
    given = draw("many chunks", SIZES[0], torch.float32)
    whole = {name: t.clone() for name, t in given.items()}
    wanted = scan_in_stages(PLANS["in sequence"], *whole.values(), (0.0, 1.0), is_exact=True)
    tokens, cut, slots = ("x", "dt", "B", "C"), 70, given["state_indices"]
    parts = []
    for start, end in pairwise((0, cut, 150)):
        part = {name: t[start:end] if name in tokens else t for name, t in given.items()}
        part["query_start_loc"] = torch.tensor([0, end - start]).int()
        part["state_indices"], part["has_initial_state"] = slots[:1], given["has_initial_state"][:1]
        parts.append(scan_in_stages(PLANS["passed"], *part.values(), (0.0, 1.0), is_exact=True))
    torch.testing.assert_close(torch.cat(parts), wanted[:150], rtol=1e-5, atol=1e-5)
    slot = int(slots[0])
    torch.testing.assert_close(given["ssm_states"][slot], whole["ssm_states"][slot], rtol=1e-5, atol=1e-5)


def test_short_and_small_ones_go_in_sequence() -> None:
    assert scan_plan(8192, 4, 128, 64, 128) == ScanPlan(is_passed=False)
    assert scan_plan(8192, 1, 16, 64, 128) == ScanPlan(is_passed=True)
    assert scan_plan(8192, 4, 128, 33, 65) is not None
    refused = [(8192, 100, 128, 64, 128), (8192, 4, 128, 16, 128), (8192, 4, 128, 64, 16), (8192, 4, 128, 64, 129)]
    assert [scan_plan(*sizes) for sizes in refused] == [None] * 4
