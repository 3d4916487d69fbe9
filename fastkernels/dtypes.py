"""The activation dtypes by name, and the dtype in which an op is built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastkernels.errors import UnknownNameError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Errors: UnknownNameError."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
    return DTYPES[dtype]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, what an op builds without saying a dtype has this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
