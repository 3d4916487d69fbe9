"""JSON held against the types that it should have: what a damaged file lacks, by the place where it lacks it."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

_NUMBERS = (int, float)
_LARGEST_INTEGER = 1 << 63
"""A larger one is none of ours, and no float may hold it."""


class Finite(float):
    """The hint of a number that is neither NaN nor infinite."""


class NotNegative(Finite):
    """The hint of a finite number that is 0 or more."""


class Measured(NotNegative):
    """The hint of a finite number over 0, as a time or a ratio is."""


_KINDS = {Finite: -math.inf, NotNegative: 0.0, Measured: 0.0}
"""The least of each."""


def fault(value: object, hint: Any, where: str) -> str:
    """What of `value` is not as `hint` says, as "ops[0].level is 'x', not a number"; "" when nothing is.

    hint: of str, bool, numbers (an int is a float), Finite, Measured, StrEnum, Literal, list, dict, unions,
    dataclasses and TypedDict (what else an object holds is no matter).
    """
    if hint is Any:
        return ""
    origin = get_origin(hint)
    if origin is Literal:
        return "" if value in get_args(hint) else f"{where} is {_shown(value)}, not one of {', '.join(get_args(hint))}"
    if origin in (Union, types.UnionType):
        return _union(value, get_args(hint), where)
    if origin is list:
        return _list(value, get_args(hint)[0], where)
    if origin is dict:
        return _dict(value, get_args(hint)[1], where)
    if is_typeddict(hint) or is_dataclass(hint):
        return _object(value, hint, where)
    return "" if _is(value, hint) else f"{where} is {_shown(value)}, not {_named(hint)}"


def _is(value: object, hint: Any) -> bool:
    if hint is bool:
        return isinstance(value, bool)
    if hint in (*_NUMBERS, *_KINDS):
        if not isinstance(value, _NUMBERS) or isinstance(value, bool):
            return False
        if isinstance(value, int) and abs(value) >= _LARGEST_INTEGER:
            return False
        if hint in _NUMBERS:
            return hint is float or isinstance(value, int)
        return math.isfinite(value) and value >= _KINDS[hint] and (hint is not Measured or value > 0)
    if issubclass(hint, StrEnum):
        return value in list(hint)
    return isinstance(value, hint)


def _union(value: object, hints: tuple[Any, ...], where: str) -> str:
    if value is None and type(None) in hints:
        return ""
    found = [fault(value, hint, where) for hint in hints if hint is not type(None)]
    return "" if "" in found else found[0]


def _list(value: object, hint: Any, where: str) -> str:
    if not isinstance(value, list):
        return f"{where} is {_shown(value)}, not a list"
    if hint in _NUMBERS and {type(item) for item in value} <= set(_NUMBERS):  # many: the samples of a run
        return ""
    return next((found for i, item in enumerate(value) if (found := fault(item, hint, f"{where}[{i}]"))), "")


def _dict(value: object, hint: Any, where: str) -> str:
    if not isinstance(value, dict):
        return f"{where} is {_shown(value)}, not an object"
    return next((found for key, item in value.items() if (found := fault(item, hint, _place(where, key)))), "")


def _object(value: object, hint: Any, where: str) -> str:
    if not isinstance(value, dict):
        return f"{where} is {_shown(value)}, not an object"
    hints, needed = _members(hint)
    missing = [name for name in hints if name in needed and name not in value]
    if missing:
        return f"{where} lacks {', '.join(missing)}".lstrip()
    return next((w for n, h in hints.items() if n in value and (w := fault(value[n], h, _place(where, n)))), "")


@cache
def _members(hint: Any) -> tuple[Mapping[str, Any], frozenset[str]]:
    """Hints by name, and which of them there must be."""
    hints = get_type_hints(hint, include_extras=True)
    optional = {name for name, found in hints.items() if get_origin(found) is NotRequired}
    return {n: get_args(h)[0] if n in optional else h for n, h in hints.items()}, frozenset(hints.keys() - optional)


def _place(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _named(hint: Any) -> str:
    if issubclass(hint, StrEnum):
        return f"one of {', '.join(hint)}"
    words = {
        str: "a text",
        int: "a whole number of less than 2**63",
        bool: "true or false",
        Finite: "a finite number",
        NotNegative: "a finite number that is 0 or more",
        Measured: "a finite number over 0",
    }
    return words.get(hint, "a number" if hint is float else f"of {hint.__name__}")
