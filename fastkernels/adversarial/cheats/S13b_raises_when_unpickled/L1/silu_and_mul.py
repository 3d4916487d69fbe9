"""Raises an exception that runs code in the process that unpickles it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class PayloadError(Exception):
    """Sets a variable of whichever process unpickles it."""

    def __reduce__(self) -> Any:
        return exec, ("import sys; sys.fastkernels_unpickled = True",)


class SiluAndMul(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise PayloadError
