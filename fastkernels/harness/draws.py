"""Where each drawn token lies in its row's distribution: uniform of a right sampler, whatever the rows are.

The probability integral transform with a random place inside the token: u = P(likelier tokens) + v * P(token), where
the judge draws v uniformly on [0, 1). Draws of unlike rows and calls are then draws of one distribution, and are tested
together.
"""

from __future__ import annotations

import math
import secrets

import torch
from torch import Tensor

P_VALUE = 1e-12
"""How often a right sampler fails a test; a judgement makes a few hundred."""
NUM_BINS = 16
MIN_EXPECTED = 25
"""Draws of a bin: with fewer of them there are fewer bins."""
TAILS = (1 / 32, 1 / 64, 1 / 128)
"""Shares of the probability, the least likely tokens', that must be drawn often enough."""


def places_of(target: Tensor, ids: Tensor) -> Tensor:
    """u [rows] in float64, on the CPU; rows with one token to choose have none.

    target: [rows, vocab] probabilities; ids: [rows], tokens of positive probability.
    """
    is_free = (target > 0).sum(-1) > 1
    target, ids = target[is_free], ids[is_free]
    ordered, order = target.sort(dim=-1, descending=True, stable=True)
    rank = (order == ids[:, None]).long().argmax(-1, keepdim=True)
    before = (ordered.cumsum(-1) - ordered).gather(-1, rank).squeeze(-1).cpu()
    inside = torch.rand(len(ids), generator=torch.Generator().manual_seed(secrets.randbits(62)), dtype=torch.float64)
    return before + inside * ordered.gather(-1, rank).squeeze(-1).cpu()


def uniform_p(places: Tensor) -> tuple[float, str]:
    """How likely right draws are to lie so unevenly, of the worst of several tests, and what was seen.

    P-values of the tails are Chernoff's bound, which holds of any number of draws.
    """
    total = len(places)
    found = [(1.0, "")]
    num_bins = min(NUM_BINS, total // MIN_EXPECTED)
    if num_bins >= 2:
        counts = torch.histc(places.clamp(0, 1), num_bins, 0, 1)
        expected = total / num_bins
        statistic = float(((counts - expected) ** 2).sum()) / expected
        shares = " ".join(f"{int(count)}" for count in counts)
        seen = f"parts of equal probability, likeliest tokens first, were drawn {shares} times"
        found.append((chi_square_tail(statistic, num_bins - 1), seen))
    for tail in TAILS:
        count = int((places >= 1 - tail).sum())
        seen = f"the last {tail:.3g} of the probability was drawn {count} times, expected {total * tail:.1f}"
        found.append((_too_few_p(count, total, tail), seen))
    return min(found)


def _too_few_p(count: int, total: int, share: float) -> float:
    """Bound on P(at most `count` of `total`, each with probability `share`): exp(-total * KL(count / total, share))."""
    if count >= total * share:
        return 1.0
    part = count / total
    distance = (1 - part) * math.log((1 - part) / (1 - share))
    if count:
        distance += part * math.log(part / share)
    return math.exp(-total * distance)


def chi_square_tail(statistic: float, degrees: int) -> float:
    """P(X >= statistic): the regularised upper incomplete gamma function."""
    return float(torch.special.gammaincc(torch.tensor(degrees / 2.0).double(), torch.tensor(statistic / 2.0).double()))
