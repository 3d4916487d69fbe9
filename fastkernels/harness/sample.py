"""A few bytes of a large answer, spread over all of it, which the judge asks for as soon as the answer is claimed.

Copying a large answer takes longer, and varies by more, than the work that could be left for after the claim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

PIECE_BYTES, NUM_PIECES = 64, 64
SAMPLE_BYTES = PIECE_BYTES * NUM_PIECES


@dataclass(frozen=True)
class Sample:
    """`count` pieces of `width` bytes, `step` bytes apart, of the part numbered `part`."""

    part: int
    start: int
    width: int
    step: int
    count: int

    @classmethod
    def drawn(cls, lot: int, part_bytes: Sequence[int]) -> Sample | None:
        """What the secret `lot` chooses of parts of these sizes; None where all are empty."""
        parts = [index for index, size in enumerate(part_bytes) if size]
        if not parts:
            return None
        lot, chosen = divmod(lot, len(parts))
        size = part_bytes[parts[chosen]]
        if size <= SAMPLE_BYTES:
            return cls(parts[chosen], 0, size, size, 1)
        step = size // NUM_PIECES
        return cls(parts[chosen], lot % (step - PIECE_BYTES + 1), PIECE_BYTES, step, NUM_PIECES)

    @property
    def num_bytes(self) -> int:
        return self.width * self.count

    def of(self, raw: Tensor) -> Tensor:
        """The pieces of one part's bytes (uint8), one after the other."""
        return self.pieces(raw).flatten()

    def pieces(self, raw: Tensor) -> Tensor:
        """The same, [count, width], where they lie."""
        return raw.as_strided((self.count, self.width), (self.step, 1), raw.storage_offset() + self.start)
