"""Which ops of a set break a model, by delta debugging (Zeller & Hildebrandt 2002, ddmin), and what is left without."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

MOST_RUNS = 24
"""One op at fault among n is found in about 2 log2(n) runs."""

MOST_SECONDS = 600.0
"""Ops that hang cost a time limit each; what is not found by then is left out of the deployable part."""

Breaks = Callable[[Sequence[str]], str | None]
"""An untimed run of a model with these ops replaced: the reason why it is not deployable, None when it is."""


@dataclass(frozen=True)
class Found:
    """at_fault: ops that were left out, each with the reason. kept: in the set's order; deployable together."""

    at_fault: dict[str, str]
    kept: list[str]
    num_runs: int


class _Spent(Exception):
    """No run is left."""


@dataclass
class _Tests:
    """Runs, each subset once, within a budget."""

    breaks: Breaks
    most_runs: int
    deadline: float
    known: dict[tuple[str, ...], str | None]
    num_runs: int = 0
    passed: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(self, ops: Sequence[str]) -> str | None:
        place = tuple(ops)
        if place not in self.known:
            if self.num_runs >= self.most_runs or time.monotonic() > self.deadline:
                raise _Spent
            self.num_runs += 1
            self.known[place] = self.breaks(place)
            if self.known[place] is None:
                self.passed.append(place)
        return self.known[place]


def find_at_fault(
    ops: Sequence[str],
    reason: str,
    breaks: Breaks,
    most_runs: int = MOST_RUNS,
    most_seconds: float = MOST_SECONDS,
) -> Found:
    """ops: those of the set that the model has; reason: why all of them together are not deployable.

    A smallest breaking subset is searched for and one op of it left out, until what remains runs: of ops that break the
    model only together, the last one. When the budget is spent first, the largest subset that was seen to run is kept.
    """
    tests = _Tests(breaks, most_runs, time.monotonic() + most_seconds, {tuple(ops): reason})
    at_fault: dict[str, str] = {}
    remaining = list(ops)
    try:
        while remaining and tests(remaining) is not None:
            smallest = _smallest_breaking(remaining, tests)
            *others, last = smallest
            at_fault[last] = tests(smallest) or reason
            if others:
                at_fault[last] += f" (only together with {', '.join(others)})"
            remaining.remove(last)
    except _Spent:
        most = max(map(len, tests.passed), default=0)
        remaining = next((list(passed) for passed in tests.passed if len(passed) == most), [])
        at_fault = {op: why for op, why in at_fault.items() if op not in remaining}
        unclear = [op for op in ops if op not in remaining and op not in at_fault]
        at_fault |= dict.fromkeys(unclear, f"not cleared within {tests.num_runs} runs")
    return Found(at_fault, remaining, tests.num_runs)


def _smallest_breaking(ops: Sequence[str], tests: _Tests) -> list[str]:
    """A subset that breaks the model, and no longer does without any one of its parts."""
    found, num_parts = list(ops), 2
    while len(found) > 1:
        parts = _split(found, num_parts)
        rests = [[op for op in found if op not in part] for part in parts] if num_parts > 2 else []
        smaller = next((s for s in [*parts, *rests] if tests(s) is not None), None)
        if smaller is not None:
            num_parts = 2 if smaller in parts else max(2, num_parts - 1)
            found = smaller
        elif num_parts < len(found):
            num_parts = min(len(found), 2 * num_parts)
        else:
            break
    return found


def _split(ops: Sequence[str], num_parts: int) -> list[list[str]]:
    ends = [len(ops) * i // num_parts for i in range(num_parts + 1)]
    return [list(ops[a:b]) for a, b in pairwise(ends)]
