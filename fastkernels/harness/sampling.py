"""Whether drawn tokens follow the distribution that they should: nucleus membership, and how often each was drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastkernels.harness import draws
from fastkernels.harness.compare import Expected
from fastkernels.harness.draws import chi_square_tail
from fastkernels.harness.verdict import Rejection, Verdict

P_VALUE = 1e-7
"""A right sampler is rejected once in ten million tests."""
MIN_EXPECTED = 25.0
"""Of a cell: under fewer the tail of the statistic is fatter than chi-square's, and P_VALUE would not hold."""


def target_distribution(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Probabilities [rows, vocab] in float64 after temperature, top-k, then the nucleus, which keeps the
    token that crosses p; ties at an edge are kept on both sides by a relative slack of 1e-9."""
    logits = logits.double()
    greedy = temperature == 0
    scaled = logits / torch.where(greedy, 1.0, temperature.double())[:, None]
    ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(logits.shape[-1], device=logits.device)
    ordered = ordered.masked_fill((top_k[:, None] > 0) & (ranks >= top_k[:, None]), -math.inf)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    outside = (top_p[:, None] < 1) & (before >= top_p.double()[:, None] * (1 + 1e-9))
    kept = ordered.masked_fill(outside, -math.inf).softmax(-1)
    kept = torch.where(greedy[:, None], (ranks == 0).double().expand_as(kept), kept)
    return torch.zeros_like(kept).scatter_(-1, ids, kept)


def check_samples(expected: Expected, answer: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Rows of equal parameters are draws of one distribution; every row must lie inside its nucleus. A row whose every
    token is masked out has none.

    Returns: the places of its draws (draws.py), to be tested with those of other calls.
    Errors: Rejection INCORRECT_NUMERICAL.
    """
    is_first = _check_repeated(answer, inputs)
    logits = inputs["logits"]
    target = target_distribution(logits, inputs["temperature"], inputs["top_k"], inputs["top_p"]).to(answer.device)
    size = target.shape[-1]
    if bool(((answer < 0) | (answer >= size)).any()):
        raise Rejection(Verdict.INCORRECT_NUMERICAL, f"A sampled id lies outside [0, {size}).")
    chosen = target.gather(-1, answer.long()[:, None]).squeeze(-1)  # NaN where all is masked out
    if bool((chosen == 0).any()):
        row = int((chosen == 0).nonzero()[0])
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL,
            f"Row {row} drew token {int(answer[row])}, which top-k or the nucleus excludes.",
        )
    is_drawn = is_first & ~target.isnan().any(-1)  # a request that comes again is no draw of its own
    if not bool(is_drawn.any()):
        return torch.empty(0, dtype=torch.float64)
    target, answer = target[is_drawn], answer[is_drawn]
    for rows in _groups(target):
        _chi_square(target[rows[0]] * len(rows), torch.bincount(answer[rows], minlength=size))
    # Rows of unlike distributions together: how often the likeliest, the second, ... token was drawn.
    ordered, ids = target.sort(dim=-1, descending=True, stable=True)
    ranks = (ids == answer[:, None]).long().argmax(-1)
    _chi_square(ordered.sum(0), torch.bincount(ranks, minlength=size))
    # And how often the least of the tokens that top-k and the nucleus keep: the one that crosses p.
    num_kept = (target > 0).sum(-1)
    is_cut = (num_kept > 1) & (num_kept < size)
    least = ordered.gather(-1, num_kept[:, None] - 1).squeeze(-1)[is_cut].sum()
    num_least = (ranks == num_kept - 1)[is_cut].sum()
    num_cut = is_cut.sum()
    _chi_square(torch.stack((least, num_cut - least)), torch.stack((num_least, num_cut - num_least)))
    places = draws.places_of(target, answer)
    check_places(places)
    return places


def check_places(places: Tensor) -> None:
    """Errors: Rejection INCORRECT_NUMERICAL when right draws would hardly lie so unevenly."""
    p, seen = draws.uniform_p(places)
    if p < draws.P_VALUE:
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL,
            f"{len(places)} draws do not follow their distribution: {seen}; p = {p:.1e}, limit {draws.P_VALUE:.0e}.",
        )


def _check_repeated(answer: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Which rows are the first of their request; the same request, seed included, must have the same token everywhere.

    Errors: Rejection INCORRECT_NUMERICAL.
    """
    is_first = torch.ones(len(answer), dtype=torch.bool, device=answer.device)
    if inputs.get("seeds") is None:
        return is_first
    first: dict[int, list[int]] = {}
    for row, seed in enumerate(inputs["seeds"].tolist()):
        first.setdefault(seed, []).append(row)
    for rows in (rows for rows in first.values() if len(rows) > 1):
        for number, row in enumerate(rows):
            for before in rows[:number]:
                if all(
                    torch.equal(inputs[n][row], inputs[n][before]) for n in ("logits", "temperature", "top_k", "top_p")
                ):
                    is_first[row] = False
                    _check_same(answer[row], answer[before], f"Rows {before} and {row} are the same request")
                    break
    return is_first


def check_same_tokens(answer: Tensor, before: Tensor) -> None:
    """Two answers to one call, seeds included. Errors: Rejection INCORRECT_NUMERICAL."""
    if not torch.equal(answer, before):
        row = int((answer != before).nonzero()[0])
        _check_same(answer[row], before[row], f"Row {row} was given twice")


def _check_same(answer: Tensor, before: Tensor, what: str) -> None:
    if int(answer) != int(before):
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL,
            f"{what} with the same seed, and drew tokens {int(before)} and {int(answer)}.",
        )


def _groups(target: Tensor) -> list[Tensor]:
    """Rows that share a distribution, at least 64 of them."""
    _, inverse = torch.unique(target, dim=0, return_inverse=True)
    groups = [(inverse == g).nonzero().flatten() for g in range(int(inverse.max()) + 1)]
    return [rows for rows in groups if len(rows) >= 64]


def _chi_square(expected: Tensor, counts: Tensor) -> None:
    """Errors: Rejection when the p-value is under P_VALUE."""
    p = chi_square_p(expected, counts)
    if p is not None and p < P_VALUE:
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL,
            f"{int(counts.sum())} draws do not follow their distribution: p = {p:.1e}, limit {P_VALUE:.0e}.",
        )


def chi_square_p(expected: Tensor, counts: Tensor) -> float | None:
    """How likely right draws are to lie as far off; cells of small expectation are one. None with fewer than two."""
    observed = counts.double()
    large = expected >= MIN_EXPECTED
    cells = list(zip(observed[large].tolist(), expected[large].tolist(), strict=True))
    rest = (float(observed[~large].sum()), float(expected[~large].sum()))
    if rest[1] >= MIN_EXPECTED:
        cells.append(rest)
    if len(cells) < 2:
        return None
    return chi_square_tail(sum((o - e) ** 2 / e for o, e in cells), len(cells) - 1)
