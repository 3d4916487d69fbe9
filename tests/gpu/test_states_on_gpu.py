"""Kernels over state slots on a GPU, in bf16 at lengths of several chunks, against their definitions in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastkernels.harness.tolerance import tolerance_for
from fastkernels.kernels.chunk_gated_delta_rule import in_stages
from fastkernels.tasks.baseline.L1.chunk_gated_delta_rule import ChunkGatedDeltaRule, draw_delta_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
LENGTHS, HOLDS = (200, 1, 0, 64, 65, 513, 128), (True, False, True, False, True, True, False)
NAN = float("nan")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every torch.empty is NaN: an element that no kernel wrote shows."""
    torch.manual_seed(0)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(NAN))


def delta_inputs(heads: tuple[int, int], sizes: tuple[int, int], decay: str, device: str) -> dict[str, Any]:
    """Rows inside wider ones that hold NaN; slots of nobody, and those that hold nothing, are NaN too."""
    axes = {"num_v_heads": heads[0], "num_k_heads": heads[1], "head_k_dim": sizes[0]}
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    num_tokens, num_seqs = int(starts[-1]), len(LENGTHS)
    drawn = draw_delta_inputs(axes, num_tokens, torch.Generator().manual_seed(1))
    wide = torch.full((num_tokens, 3, *heads[:1], max(sizes)), NAN)
    for place, x in enumerate((drawn["q"], drawn["k"], torch.randn(num_tokens, heads[0], sizes[1]))):
        wide[:, place, : x.shape[1], : x.shape[2]] = x
    wide = wide.to(device, torch.bfloat16)
    q, k = (wide[:, place, : heads[1], : sizes[0]] for place in (0, 1))
    g = drawn["g"]
    if decay == "strong":
        g = torch.where(torch.arange(num_tokens)[:, None] % 8 == 1, -3000.0, g)
    elif decay == "none":
        g = torch.zeros_like(g)
    slots, holds = torch.arange(num_seqs).flip(0) + 1, torch.tensor(HOLDS)
    states = torch.full((num_seqs + 2, heads[0], *sizes), NAN)
    states[slots[holds]] = torch.randn(int(holds.sum()), heads[0], *sizes)
    rest = {"g": g, "beta": drawn["beta"], "states": states, "query_start_loc": starts}
    rest |= {"state_indices": slots.int(), "has_initial_state": holds}
    moved = {name: x.to(device) for name, x in rest.items()}
    return {"q": q, "k": k, "v": wide[:, 2, :, : sizes[1]], **moved, "max_query_len": max(LENGTHS)}


def row_errors(got: Tensor, exact: Tensor) -> Tensor:
    return ((got.double() - exact).square().mean(-1) / exact.square().mean(-1)).sqrt()


@pytest.mark.parametrize("decay", ["usual", "strong", "none"])
@pytest.mark.parametrize("sizes", [(128, 128), (64, 64), (100, 72), (128, 16), (24, 19), (16, 16)])
def test_delta_rule_in_stages_errs_within_its_tolerance(sizes: tuple[int, int], decay: str) -> None:
    given = delta_inputs((4, 2), sizes, decay, "cuda")
    assert in_stages(given["q"], len(LENGTHS))
    exact = {n: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in given.items()}
    exact["states"] = exact["states"].clone()
    wanted = {"o": ChunkGatedDeltaRule().reference(**exact), "states": exact["states"]}
    answers = []
    for _ in range(2):
        mine = {**given, "states": given["states"].clone()}
        answers.append({"o": ChunkGatedDeltaRule()(**mine), "states": mine["states"]})
    for name, right in wanted.items():
        got = answers[0][name]
        assert torch.equal(got.isnan(), right.isnan())
        assert torch.equal(got.nan_to_num(), answers[1][name].nan_to_num())
        limit, is_row = tolerance_for("chunk_gated_delta_rule", torch.bfloat16, "normal", name), ~right.isnan().any(-1)
        errors = row_errors(got[is_row], right[is_row])
        assert errors.square().mean().sqrt() < limit.all_rows
        # Behind a strong decay a row of o is little but q k^T times its own value, which may nearly vanish.
        assert errors.max() < (2 if decay == "strong" else 1) * limit.row
