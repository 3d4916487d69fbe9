"""Names of timed cases: what a label says, and which cases of two runs are the same. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]


def case_name(timing: Json) -> str:
    """Phase, dtype, shapes and constructor arguments, as far as there are any."""
    return " ".join(filter(None, _key(timing, has_init=True)))


def brief_name(timing: Json, others: Sequence[Json]) -> str:
    """The same for a narrow place: of the constructor's arguments those alone that tell it apart, and before the
    shapes, which may be cut off."""
    told = told_apart(timing, others)
    return " ".join(filter(None, (timing["phase"], timing["dtype"], told, timing["shapes"])))


def told_apart(timing: Json, others: Sequence[Json]) -> str:
    """The constructor's arguments in which it differs from others of its shapes."""
    alike = [_words(t) for t in others if _key(t, has_init=False) == _key(timing, has_init=False)]
    return " ".join(word for word in _words(timing) if not all(word in words for words in alike))


def paired(before: Sequence[Json], after: Sequence[Json]) -> list[tuple[Json, Json]]:
    """Timed cases that both have, in the order of `after`; those of one name in the order in which they were timed.
    Where one run does not say how an op was built, as runs of before do not, shapes alone name a case."""
    has_init = all(t.get("init") for t in (*before, *after))
    waiting: dict[tuple[str, ...], list[Json]] = {}
    for timing in before:
        waiting.setdefault(_key(timing, has_init=has_init), []).append(timing)
    found = []
    for timing in after:
        if alike := waiting.get(_key(timing, has_init=has_init)):
            found.append((alike.pop(0), timing))
    return found


def _key(timing: Json, *, has_init: bool) -> tuple[str, ...]:
    return timing["phase"], timing["dtype"], timing["shapes"], *([timing.get("init", "")] if has_init else [])


def _words(timing: Json) -> list[str]:
    return timing.get("init", "").split()
