"""The sampling kernel against a full sort: run by test_kernels_interpreter.py, or with TRITON_INTERPRET=1."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastkernels.env import triton_interpreted
from fastkernels.errors import UnsupportedError

if not triton_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1; test_kernels_interpreter.py sets it", allow_module_level=True)

from fastkernels.kernels import top_k_top_p_sample as kernels
from fastkernels.kernels.top_k_top_p_sample import top_k_top_p_sample
from fastkernels.noise import random_uniform

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")


def kept_probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """One row's distribution over ids in float64: sorted stably, cut at k, then behind the token that crosses p."""
    ordered, ids = (logits.double() / temperature).sort(descending=True, stable=True)
    if top_k:
        ordered[top_k:] = float("-inf")
    probs = ordered.softmax(-1)
    if top_p < 1:
        probs[probs.cumsum(-1) - probs >= top_p] = 0
    return torch.zeros_like(probs).scatter(0, ids, probs / probs.sum())


def definition(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seeds: Tensor) -> Tensor:
    """Gumbel-max over the kept ids, with the noise that the op documents."""
    ids = torch.arange(logits.shape[1])
    out = []
    for row, t, k, p, seed in zip(logits, temperature, top_k, top_p, seeds, strict=True):
        if t == 0:
            out.append(row.float().argmax())
            continue
        kept = kept_probabilities(row, t.double().item(), int(k), p.double().item())
        gumbel = -torch.log(-torch.log(random_uniform(seed, ids)))
        out.append((kept.log() + gumbel).argmax())
    return torch.stack(out)


def arguments(num_rows: int, vocab_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    temperature = torch.tensor([0.0, 0.3, 1.0, 1.5])[torch.randint(0, 4, (num_rows,))]
    top_k = torch.randint(0, vocab_size + 2, (num_rows,), dtype=torch.int32)
    top_k[::3] = 0
    top_k[1::3] = torch.randint(0, min(vocab_size, 60) + 1, top_k[1::3].shape).int()
    top_p = torch.rand(num_rows).clamp(min=1e-3)
    top_p[::4] = 1
    return temperature, top_k, top_p, torch.randint(-(2**63), 2**63 - 1, (num_rows,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("vocab_size", [1, 7, 300, 1021, 9001])
def test_sample_equals_the_definition_by_sorting(vocab_size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(vocab_size)
    spread = torch.tensor([0.0, 0.1, 1.0, 5.0]).repeat(6)[:, None]
    logits = (torch.randn(24, vocab_size) * spread).to(dtype)
    if vocab_size > 1:
        logits[3, ::2] = float("-inf")
    rows = arguments(24, vocab_size)
    assert top_k_top_p_sample(logits, *rows).equal(definition(logits, *rows))


def test_sample_over_more_candidates_than_fit_a_tile_equals_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "TILE", 64)
    torch.manual_seed(0)
    logits = (torch.randn(12, 1500) * 0.5).round(decimals=1)
    rows = arguments(12, 1500)
    assert top_k_top_p_sample(logits, *rows).equal(definition(logits, *rows))


def test_sample_keeps_the_token_that_crosses_p_and_the_first_of_equals() -> None:
    one = torch.ones(6)

    def check(row: list[float], top_k: int, top_p: float, kept: set[int]) -> None:
        logits = torch.tensor(row).half().expand(6, -1)
        rows = (one, (one * top_k).int(), one * top_p, torch.arange(6) * 31)
        assert set(kept_probabilities(logits[0], 1.0, top_k, top_p).nonzero().flatten().tolist()) == kept
        drawn = top_k_top_p_sample(logits, *rows)
        assert drawn.equal(definition(logits, *rows))
        assert set(drawn.tolist()) <= kept

    falling = [0.0, -0.25, -1.5]
    check(falling, 0, 0.6, {0, 1})
    check(falling, 0, 0.45, {0})
    check(falling, 2, 1.0, {0, 1})
    check([0.0] * 8, 3, 1.0, {0, 1, 2})
    check([0.0] * 8, 0, 0.5, {0, 1, 2, 3})
    check([0.0] * 8, 6, 0.5, {0, 1, 2})
    check([-0.0, -1.0, 0.0, -0.0], 2, 1.0, {0, 2})


@pytest.mark.parametrize(("dtype", "tile"), [(torch.bfloat16, 64), (torch.bfloat16, kernels.TILE), (torch.float16, 64)])
def test_ties_at_a_negative_cut_are_ordered_by_id(dtype: torch.dtype, tile: int, monkeypatch: Any) -> None:
    """A negative logit's key ends in ones where the dtype has fewer bits than the key."""
    monkeypatch.setattr(kernels, "TILE", tile)
    cuts = torch.tensor([[1, 1.0], [3, 1.0], [0, 0.02], [0, 0.3]])
    logits = torch.full((len(cuts), 256), -8.0, dtype=dtype)
    logits[:, 10 : 110 if tile == 64 else 20] = -3.0
    for seed in range(2):
        rows = (torch.ones(4), cuts[:, 0].int(), cuts[:, 1].contiguous(), torch.arange(4) + 31 * seed)
        assert top_k_top_p_sample(logits, *rows).equal(definition(logits, *rows))


def test_the_likeliest_of_a_row_with_nan_is_the_nan() -> None:
    logits = torch.randn(3, 9001)
    logits[0, 8500], logits[1, :], logits[2, 17] = float("nan"), float("nan"), float("nan")
    rows = (torch.tensor([0.0, 0.0, 1.0]), torch.zeros(3).int(), torch.ones(3), torch.arange(3))
    drawn = top_k_top_p_sample(logits, *rows)
    assert drawn[:2].tolist() == [8500, 0]
    assert 0 <= drawn[2] < 9001
    assert drawn[2] != 17


def test_sample_of_a_seed_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(1)
    logits = torch.randn(6, 700)
    temperature, top_k, top_p, seeds = torch.ones(6), torch.tensor([0, 5, 0, 40, 0, 0]), torch.full((6,), 0.9), None
    top_p[2] = 1.0
    seeds = torch.tensor([5, 5, 5, 2**62, -1, 0])
    whole = top_k_top_p_sample(logits, temperature, top_k, top_p, seeds)
    wide = torch.full((6, 800), float("nan"))
    wide[:, 50:750] = logits
    rows = [slice(i, i + 1) for i in range(6)]
    alone = [top_k_top_p_sample(wide[r, 50:750], temperature[r], top_k[r], top_p[r], seeds[r]) for r in rows]
    assert torch.cat(alone).equal(whole)


def test_sample_of_no_rows_is_empty_and_float64_is_refused() -> None:
    none = torch.zeros(0)
    assert top_k_top_p_sample(torch.zeros(0, 9), none, none.int(), none, none.long()).tolist() == []
    with pytest.raises(UnsupportedError, match="float64"):
        top_k_top_p_sample(torch.zeros(1, 9).double(), *torch.ones(3, 1), torch.ones(1).long())
