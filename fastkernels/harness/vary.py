"""Fresh values for each call from a pool of inputs: the same arithmetic on both sides.

A call's input is its pool entry, rolled and multiplied elementwise by a vector that the judge draws
for that call, tokens shifted modulo the vocabulary. No value of one call tells the next one's, and
no linear or odd symmetry of an op maps one answer to another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PERIOD = 4093  # prime, so that it lines up with no axis


@dataclass(frozen=True)
class Variation:
    """roll: elements; multiplier: [PERIOD] float32 in +-[0.75, 1.25]; shift: added to token ids (on a GPU an int64
    tensor, because the host must not know it before the clock runs)."""

    roll: int
    multiplier: Tensor
    shift: int | Tensor


def draw_variation(generator: torch.Generator) -> Variation:
    magnitude = 0.75 + 0.5 * torch.rand(PERIOD, generator=generator)
    sign = 1 - 2 * torch.randint(0, 2, (PERIOD,), generator=generator)
    roll, shift = torch.randint(1, 1 << 30, (2,), generator=generator).tolist()
    return Variation(roll, magnitude * sign, shift)


def vary_floats(x: Tensor, variation: Variation) -> Tensor:
    """Same shape and dtype as `x`, contiguous; rounded once to the dtype of `x`. What is infinite stays as it is: of a
    token that is masked out no other sign may be made."""
    flat = x.reshape(-1)
    if flat.numel() == 0:
        return x.clone()
    factor = variation.multiplier.to(x.device)
    repeats = -(-flat.numel() // PERIOD)
    factors = factor.repeat(repeats)[: flat.numel()]
    rolled = torch.roll(flat, variation.roll % flat.numel())
    return torch.where(rolled.isinf(), rolled, (rolled.float() * factors).to(x.dtype)).reshape(x.shape)


def vary_tokens(x: Tensor, variation: Variation, bound: int) -> Tensor:
    return (x + variation.shift) % bound


def touch(variation: Variation, num_elements: int, generator: torch.Generator, place: int | None = None) -> Variation:
    """The same values but for one element in PERIOD, at `place` or one that nobody can guess: whoever answers
    from a fingerprint of a few elements answers wrongly."""
    if place is None:
        place = int(torch.randint(0, max(1, min(num_elements, PERIOD)), (1,), generator=generator))
    multiplier = variation.multiplier.clone()
    multiplier[place] = -multiplier[place] * 1.5
    return Variation(variation.roll, multiplier, variation.shift)
