"""Requests as an engine gets them: token ids, how many tokens they ask for, and when they arrive."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastkernels.errors import UsageError


@dataclass(frozen=True)
class TrafficRequest:
    """arrival_s: seconds after the first request; 0 where the workload knows no times."""

    prompt_token_ids: tuple[int, ...]
    output_len: int
    arrival_s: float = 0.0


class TokenSource:
    """Token ids by seed: all of a vocabulary but the ids that would end an answer, or stand for something else."""

    def __init__(self, vocab_size: int, end_ids: Collection[int] = (), seed: int = 0) -> None:
        tokens = np.setdiff1d(np.arange(vocab_size), np.asarray(sorted(end_ids), dtype=np.int64))
        self._tokens = tokens.astype(object)  # so that equal tokens are one object: a trace has a hundred million
        if not len(tokens):
            raise UsageError(f"A vocabulary of {vocab_size} without {len(end_ids)} end tokens has no token to draw.")
        self._seed = seed

    def draw(self, count: int, *stream: int) -> list[int]:
        """`count` tokens that (seed, stream) alone decide."""
        generator = np.random.default_rng((self._seed, *stream))
        drawn: list[int] = self._tokens[generator.integers(len(self._tokens), size=count)].tolist()
        return drawn


class Traffic(Protocol):
    """What a fixed mix and a trace have in common."""

    @property
    def name(self) -> str: ...

    @property
    def num_requests(self) -> int: ...

    @property
    def has_arrivals(self) -> bool: ...

    def scaled(self, factor: float) -> Traffic:
        """The same with lengths times `factor`, never below 1."""

    def limited(self, num_requests: int) -> Traffic:
        """The same with this many requests."""

    def seeded(self, seed: int) -> Traffic:
        """The same with other token ids."""

    def lengths(self) -> list[tuple[int, int]]:
        """Tokens of each prompt, and of its answer."""

    def requests(self, vocab_size: int, end_ids: Collection[int] = ()) -> list[TrafficRequest]:
        """The same on every machine. end_ids: not drawn. Errors: UsageError when the vocabulary is empty."""


def capped(requests: Sequence[TrafficRequest], max_len: int) -> tuple[list[TrafficRequest], int]:
    """Requests cut to `max_len` tokens in all, the prompt first; and how many were cut. Errors: UsageError."""
    if max_len < 2:
        raise UsageError(f"Requests are cut to {max_len} tokens; a prompt and an answer have at least 2.")
    found = []
    for request in requests:
        output_len = min(request.output_len, max_len - 1)
        prompt = request.prompt_token_ids[: max_len - output_len]
        found.append(TrafficRequest(prompt, output_len, request.arrival_s))
    return found, sum(a != b for a, b in zip(requests, found, strict=True))
