"""Which levels of ops are spoken of together."""

from __future__ import annotations

from collections.abc import Iterable

MAIN_LEVELS = (1, 2)
"""Of the scope that agents are ranked by: what has been published of agents is of these."""


def level_scopes(judged: Iterable[int]) -> dict[str, tuple[int, ...]]:
    """Levels by the name of a scope: L1 and L2 together, then each level of `judged`."""
    levels = sorted(set(judged))
    together = {"L1+L2": MAIN_LEVELS} if set(levels) & set(MAIN_LEVELS) else {}
    return {**together, **{f"L{level}": (level,) for level in levels}}
