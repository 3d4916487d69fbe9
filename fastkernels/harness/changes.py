"""Places in a call's arguments that the definition writes to. They are looked at as soon as a call claims to be done: a
cache is far larger than what one call stores in it, and copying all of it leaves time to store the rest."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fastkernels.harness.arena import Layout, dtype_of
from fastkernels.harness.verdict import Rejection, Verdict

MOST_PLACES = 4096
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""NaN is not equal to itself, its bits are."""


@dataclass(frozen=True)
class Changes:
    """By slot: elements from its start on (int64)."""

    layout: Layout
    places: Mapping[str, Tensor]

    @classmethod
    def of(cls, layout: Layout, given: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Changes:
        """after: tensors as the definition leaves them; of many changed elements MOST_PLACES, drawn in secret."""
        generator = torch.Generator().manual_seed(secrets.randbits(62))
        strides = {slot.name: slot.stride for slot in layout.slots}
        places = {}
        for name, value in after.items():
            before, now = given[name], value.to(given[name].dtype)
            is_same = (before == now) | (before.isnan() & now.isnan())
            indices = (~is_same).nonzero().cpu()
            indices = indices[torch.randperm(len(indices), generator=generator)[:MOST_PLACES]]
            places[name] = (indices * torch.tensor(strides[name], dtype=torch.int64)).sum(dim=-1)
        return cls(layout, places)

    def seen(self, region: Tensor) -> list[Tensor]:
        """What lies there now, as integers of the elements' width: of each slot a copy."""
        found = []
        for slot in self.layout.slots:
            if slot.name in self.places:
                bits = _BITS[dtype_of(slot.dtype).itemsize]
                flat = region[slot.offset : slot.offset + slot.num_bytes].view(bits)
                found.append(flat[self.places[slot.name]])
        return found

    def check(self, region: Tensor, seen: list[Tensor]) -> None:
        """Errors: Rejection CHEATING when something else lies there than what was seen."""
        for before, now in zip(seen, self.seen(region), strict=True):
            if not torch.equal(before, now):
                raise Rejection(
                    Verdict.CHEATING, "An argument was still written to when the call had claimed to be done."
                )
