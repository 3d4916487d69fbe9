"""A right sampler passes over thousands of draws; one that is off by a token or by a power does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastkernels.harness.compare import Expected
from fastkernels.harness.draws import places_of, uniform_p
from fastkernels.harness.sampling import (
    check_places,
    check_same_tokens,
    check_samples,
    chi_square_p,
    chi_square_tail,
    target_distribution,
)
from fastkernels.harness.verdict import Rejection
from fastkernels.spec import Compare
from fastkernels.tasks.baseline.L1.top_k_top_p_sample import TopKTopPSample

ROWS, VOCAB = 4096, 50
EXPECTED = Expected("ids", torch.empty(0), torch.int64, Compare.SAMPLE)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(seed: int = 0, *, rows: int = ROWS, is_shared: bool = True, **settings: float) -> dict[str, Tensor]:
    """`rows` draws of one distribution, or of as many; settings: temperature, top_k, top_p of every row."""
    logits = 2 * torch.randn(1 if is_shared else rows, VOCAB, generator=generator(seed)).expand(rows, VOCAB)
    return {
        "logits": logits.contiguous(),
        "temperature": torch.full((rows,), settings.get("temperature", 1.0)),
        "top_k": torch.full((rows,), int(settings.get("top_k", 0)), dtype=torch.int32),
        "top_p": torch.full((rows,), settings.get("top_p", 1.0)),
        "seeds": torch.randint(0, 1 << 62, (rows,), generator=generator(seed + 1)),
    }


def draws(probabilities: Tensor, seed: int) -> Tensor:
    return torch.multinomial(probabilities, 1, generator=generator(seed)).squeeze(1)


def check(given: dict[str, Tensor], ids: Tensor) -> None:
    check_samples(EXPECTED, ids, given)


def rejected(given: dict[str, Tensor], ids: Tensor) -> str:
    with pytest.raises(Rejection) as caught:
        check(given, ids)
    return caught.value.message


SETTINGS = ({}, {"temperature": 0.5}, {"top_k": 7}, {"top_p": 0.7}, {"temperature": 1.4, "top_k": 20, "top_p": 0.9})


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("is_shared", [True, False])
def test_right_sampler_passes(settings: dict[str, float], is_shared: bool) -> None:
    """By the definition's seeded noise, and by a generator that knows nothing of it."""
    given = inputs(3, is_shared=is_shared, **settings)
    check(given, TopKTopPSample().reference(*given.values()))
    target = target_distribution(*(given[n] for n in ("logits", "temperature", "top_k", "top_p")))
    for seed in range(6):
        check(given, draws(target, seed))


def _target(given: dict[str, Tensor]) -> Tensor:
    return target_distribution(given["logits"], given["temperature"], given["top_k"], given["top_p"])


def test_target_keeps_the_token_that_crosses_p() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    settings = (torch.ones(1), torch.zeros(1, dtype=torch.int32))
    kept = target_distribution(logits, *settings, torch.tensor([0.6]))
    assert kept[0].tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert (target_distribution(logits, *settings, torch.tensor([0.1]))[0] > 0).tolist() == [True, False, False, False]


def test_target_renormalises_over_top_k_before_the_nucleus() -> None:
    logits = torch.tensor([[0.4, 0.2, 0.2, 0.2]]).log()
    target = target_distribution(logits, torch.ones(1), torch.tensor([2]), torch.tensor([0.65]))
    assert target[0].tolist() == pytest.approx([1, 0, 0, 0])  # 0.4 of 0.6 is over 0.65


def test_target_of_temperature_zero_is_the_first_largest() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    target = target_distribution(logits, torch.zeros(1), torch.zeros(1, dtype=torch.int32), torch.ones(1))
    assert target.tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize("is_shared", [True, False])
def test_nucleus_without_the_crossing_token_is_rejected(is_shared: bool) -> None:
    given = inputs(4, is_shared=is_shared, top_p=0.8)
    ordered, ids = given["logits"].double().softmax(-1).sort(-1, descending=True)
    inside = (ordered.cumsum(-1) <= 0.8) | (torch.arange(VOCAB) == 0)
    wrong = torch.zeros_like(ordered).scatter_(-1, ids, torch.where(inside, ordered, 0))
    assert "do not follow their distribution" in rejected(given, draws(wrong, 1))


def test_nucleus_with_one_token_too_many_is_rejected() -> None:
    given = inputs(4, top_p=0.8)
    ordered, ids = given["logits"].double().softmax(-1).sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    inside = torch.roll(before < 0.8, 1, -1) | (torch.arange(VOCAB) == 0)
    wrong = torch.zeros_like(ordered).scatter_(-1, ids, torch.where(inside, ordered, 0))
    assert "which top-k or the nucleus excludes" in rejected(given, draws(wrong, 1))


@pytest.mark.parametrize(("off", "text"), [(1, "which top-k or the nucleus excludes"), (-1, "do not follow")])
@pytest.mark.parametrize("is_shared", [True, False])
def test_top_k_off_by_one_is_rejected(off: int, text: str, is_shared: bool) -> None:
    given = inputs(5, top_k=6, is_shared=is_shared)
    wrong = _target({**given, "top_k": given["top_k"] + off})
    assert text in rejected(given, draws(wrong, 2))


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("temperature", [0.8, 1.25])
def test_temperature_off_by_a_quarter_is_rejected(temperature: float, is_shared: bool) -> None:
    given = inputs(6, is_shared=is_shared)
    wrong = _target({**given, "temperature": given["temperature"] * temperature})
    assert "do not follow their distribution" in rejected(given, draws(wrong, 3))


@pytest.mark.parametrize("is_shared", [True, False])
def test_argmax_is_no_sample(is_shared: bool) -> None:
    given = inputs(7, is_shared=is_shared)
    assert "do not follow their distribution" in rejected(given, given["logits"].argmax(-1))


def test_same_token_for_all_rows_is_no_sample() -> None:
    given = inputs(8)
    assert "do not follow" in rejected(given, torch.full((ROWS,), int(draws(_target(given)[:1], 0))))


@pytest.mark.parametrize("bad", [-1, VOCAB, 1 << 50])
def test_id_outside_the_vocabulary_is_a_verdict(bad: int) -> None:
    given = inputs(9, rows=4)
    assert f"outside [0, {VOCAB})" in rejected(given, torch.full((4,), bad))


@pytest.mark.parametrize(
    ("statistic", "degrees", "tail"), [(3.841, 1, 0.05), (18.307, 10, 0.05), (0.0, 3, 1.0), (124.342, 100, 0.05)]
)
def test_chi_square_tail_agrees_with_the_tables(statistic: float, degrees: int, tail: float) -> None:
    assert chi_square_tail(statistic, degrees) == pytest.approx(tail, rel=2e-3)


def test_same_request_elsewhere_in_the_batch_has_the_same_token() -> None:
    given = inputs(10, rows=200, is_shared=False)
    given = {name: torch.cat((value, value[:60].flip(0))) for name, value in given.items()}
    ids = TopKTopPSample().reference(*given.values())
    check(given, ids)
    wrong = ids.clone()
    wrong[207] = (wrong[207] + 1) % VOCAB
    assert "Rows 52 and 207 are the same request with the same seed, and drew tokens" in rejected(given, wrong)
    other = {**given, "seeds": torch.arange(260)}
    check(other, TopKTopPSample().reference(*other.values()))  # other seeds are free to draw as they like


def test_requests_that_come_again_are_not_counted_as_draws() -> None:
    """One request 4096 times is one draw: its single token is no evidence against the sampler."""
    given = inputs(11)
    given["seeds"] = torch.full((ROWS,), 7)
    check(given, torch.full((ROWS,), int(draws(_target(given)[:1], 3))))


def test_row_without_a_token_has_no_nucleus_and_the_others_keep_theirs() -> None:
    given = inputs(12, is_shared=False, top_k=7)
    given["logits"][:, ::2] = float("-inf")
    target = _target(given)
    given["logits"][5] = float("-inf")
    ids = draws(target, 3)
    check(given, ids)
    ids[6] = 2
    assert "Row 6 drew token 2" in rejected(given, ids)
    check({name: x[5:6] for name, x in given.items()}, ids[5:6])


def test_same_call_again_has_the_same_tokens() -> None:
    tokens = torch.tensor([3, 1, 4])
    check_same_tokens(tokens, tokens.clone())
    with pytest.raises(Rejection, match="Row 2 was given twice with the same seed, and drew tokens 4 and 5"):
        check_same_tokens(torch.tensor([3, 1, 5]), tokens)


def test_right_samplers_are_rejected_as_rarely_as_the_limit_says() -> None:
    """The test's p-values of right draws, whole nuclei of unlike size together: at 1e-3 one in a thousand."""
    ps = []
    for seed in range(400):
        torch.manual_seed(seed)
        weights = torch.distributions.Dirichlet(torch.full((60,), 0.4)).sample()
        counts = torch.bincount(torch.multinomial(weights.double(), 600, replacement=True), minlength=60)
        p = chi_square_p(weights.double() / weights.double().sum() * 600, counts)
        if p is not None:
            ps.append(p)
    assert len(ps) > 390
    for limit in (1e-1, 1e-2, 1e-3):
        expected = limit * len(ps)
        assert sum(p < limit for p in ps) <= expected + 4 * expected**0.5 + 1


def _flat_rows(rows: int, seed: int) -> dict[str, Tensor]:
    """Rows of unlike distributions of several hundred likely tokens: hardly any token is expected 25 times."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "logits": torch.randn(rows, 1021, generator=generator),
        "temperature": torch.ones(rows),
        "top_k": torch.zeros(rows, dtype=torch.int32),
        "top_p": torch.full((rows,), 0.99),
        "seeds": torch.randint(0, 1 << 62, (rows,), generator=generator),
    }


def _without_tail(target: Tensor, share: float) -> Tensor:
    """The distribution whose least likely tokens, together the last `share`, do not exist."""
    ordered, ids = target.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(ordered).scatter_(-1, ids, torch.where(before < 1 - share, ordered, 0))


@pytest.mark.parametrize("share", [0.4, 0.25, 0.1])
def test_tail_that_is_never_drawn_is_rejected(share: float) -> None:
    given = _flat_rows(1021, 13)
    check(given, draws(_target(given), 1))
    assert "do not follow their distribution" in rejected(given, draws(_without_tail(_target(given), share), 1))


def test_calls_show_together_what_none_shows_alone() -> None:
    right, wrong = [], []
    for seed in range(8):
        given = _flat_rows(500, 20 + seed)
        for kept, target in ((right, _target(given)), (wrong, _without_tail(_target(given), 0.02))):
            kept.append(check_samples(EXPECTED, draws(target, seed), given))
    check_places(torch.cat(right))
    with pytest.raises(Rejection, match=r"4000 draws .* the last 0.0156 of the probability was drawn"):
        check_places(torch.cat(wrong))


def test_places_of_right_draws_are_uniform_as_often_as_the_p_value_says() -> None:
    """1000 calls of unlike nuclei, few rows and many; the least of four p-values is below p four times as often."""
    ps = []
    for seed in range(1000):
        rows = (40, 150, 700)[seed % 3]
        torch.manual_seed(seed)
        target = torch.distributions.Dirichlet(torch.full((rows, 60), 0.3)).sample().double()
        target = torch.where(target < 0.01, 0, target)
        target /= target.sum(-1, keepdim=True)
        ps.append(uniform_p(places_of(target, draws(target, seed)))[0])
    for limit in (1e-1, 1e-2, 1e-3):
        expected = limit * len(ps) * 4
        assert sum(p < limit for p in ps) <= expected + 4 * expected**0.5


def test_row_of_one_token_has_no_place() -> None:
    target = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 1.0, 0]]).double()
    assert len(places_of(target, torch.tensor([0, 1, 1]))) == 1
    check_places(torch.empty(0, dtype=torch.float64))
