"""The activation dtypes by name, and the dtype in which an op is built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from fastkernels.errors import UnknownNameError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"
_OTHER_NAMES = {"half": "float16", "float": "float32"}
"""vLLM's."""


def choose_dtype(asked: str | torch.dtype | None, known: str | torch.dtype) -> torch.dtype:
    """asked: None or "auto" is the model's own, `known`. Errors: UnknownNameError."""
    return find_dtype(known if asked in (None, AUTO) else asked)  # type: ignore[arg-type]


def find_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Errors: UnknownNameError."""
    if isinstance(dtype, torch.dtype):
        return dtype
    name = _OTHER_NAMES.get(dtype, dtype)
    if name not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
    return DTYPES[name]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, what an op builds without saying a dtype has this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def whole_float32(x: Tensor) -> AbstractContextManager[None]:
    """Inside, cuDNN convolves float32 as it is; unless told, torch lets it round operands to TF32 (errors of 1e-3).

    https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices
    """
    if x.dtype is not torch.float32 or not x.is_cuda:
        return nullcontext()
    now = torch.backends.cudnn
    kept = {name: getattr(now, name) for name in ("enabled", "benchmark", "benchmark_limit", "deterministic")}
    return now.flags(**kept, allow_tf32=False)
