"""What a worker says that it answered, copied into the judge's own memory before any of it is read: the worker may
write to what they share at any time, and parsing takes longer than the work that could be left for then.

First the description and a few bytes of the answer, at secret places: with them the clock stops. Then all of the
answer, which must hold the same bytes there.
"""

from __future__ import annotations

import ctypes
import secrets

import torch
from torch import Tensor

from fastkernels.harness.arena import Arena
from fastkernels.harness.control import ANSWER_BYTES
from fastkernels.harness.sample import Sample
from fastkernels.harness.verdict import Rejection, Verdict


class Look:
    """The first look at one call's answer, made ready before the clock runs."""

    def __init__(self, arena: Arena, answer_start: int, expected_bytes: int) -> None:
        """expected_bytes: of an answer as the contract has it; none are looked at of one without any."""
        self._arena, self._start = arena, answer_start
        self._address = arena.bytes.data_ptr() + answer_start - ANSWER_BYTES
        self._sample = Sample.drawn(secrets.randbits(48), [expected_bytes])
        self._pieces = self._of(arena.region(answer_start, expected_bytes))
        self._text, self._found = b"", self._pieces

    def take(self) -> None:
        """As soon as an answer is said to lie there."""
        self._text = ctypes.string_at(self._address, ANSWER_BYTES)
        self._found = self._pieces.clone()

    def description(self, length: int) -> bytes:
        """As it was then. length: as the worker says."""
        return self._text[:length]

    def whole(self, num_bytes: int) -> Tensor:
        """All that was answered. Errors: Rejection CHEATING when it is another answer than at the first look."""
        copy = self._arena.region(self._start, num_bytes).clone()
        if not torch.equal(self._of(copy), self._found):
            raise Rejection(Verdict.CHEATING, "The answer was another one when the call had claimed to have given it.")
        return copy

    def _of(self, raw: Tensor) -> Tensor:
        return raw[:0] if self._sample is None else self._sample.pieces(raw)
