"""What a request gives, as tensors and whole numbers, or a word of what is wrong with it."""

from __future__ import annotations

from operator import index
from typing import Any

import torch
from torch import Tensor

from fastkernels.errors import UsageError


def as_floats(given: Any, name: str, what: str = "an array of numbers") -> Tensor:
    """float32. Errors: UsageError when it is no such array; what: what it should be."""
    return _as_tensor(given, name, what, torch.float32)


def as_integers(given: Any, name: str, what: str) -> Tensor:
    """int64; nothing is rounded to whole numbers. Errors: UsageError when it is no array of such."""
    found = _as_tensor(given, name, what)
    if found.numel() and (found.dtype is torch.bool or found.is_floating_point() or found.is_complex()):
        raise _refusal(given, name, what)
    return found.to(torch.int64)


def as_whole_number(given: Any, name: str, least: int, most: int) -> int:
    """Errors: UsageError when it is none, or out of [least, most]."""
    try:
        number = least - 1 if isinstance(given, bool) else index(given)
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        raise _refusal(given, name, f"a whole number from {least} to {most}")
    return number


def _as_tensor(given: Any, name: str, what: str, dtype: torch.dtype | None = None) -> Tensor:
    try:
        return torch.as_tensor(given, dtype=dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise _refusal(given, name, what) from error


def _refusal(given: Any, name: str, what: str) -> UsageError:
    return UsageError(f"{name} is {given!r:.80}; it is {what}.")
