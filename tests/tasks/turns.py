"""Parameters for tests of kernels: values that need not meet every combination of the others take turns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any


def in_turn(*axes: Iterable[Any], last: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Every combination of the axes, with one value of `last` each: neighbours on any axis have different ones, so
    that of two axes or more each value of each meets all of `last`."""
    numbered = product(*(enumerate(axis) for axis in axes))
    return [(*(v for _, v in row), last[sum(i for i, _ in row) % len(last)]) for row in numbered]
