"""What a call of a kernel is for compiling ahead, how its tensors are made, and what is asked of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastkernels.kernels.ahead import Compiled

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FLOATS = (BF16, FP16, FP32)
WITHOUT_FP16 = (BF16, FP32)
"""Of scans, whose products overflow in float16."""

MAX_SPILL_BYTES = 64
"""Bytes a thread that a kernel may store for want of registers."""

SPILLS = {
    "chunk_gated_delta_rule._chunk_gated_delta_rule_kernel": (
        136,
        "a chunk's rows, its system and its state are held at once by 4 warps; 8 spill 32 bytes, but wait for each "
        "other in every row that the system is solved by: to be measured on a GPU",
    ),
}
"""By kernel: the bytes that it may store instead with 16-bit activations, and why it does."""


@dataclass(frozen=True)
class Launch:
    """One call of a kernel's wrapper.

    model: whose sizes they are; call: takes the dtype of the activations; is_tested: whether tests compile it too, of
    which there is one for each kernel.
    """

    model: str
    name: str
    call: Callable[[torch.dtype], object]
    dtypes: tuple[torch.dtype, ...] = FLOATS
    is_tested: bool = False


def complaints(kernel: Compiled) -> list[str]:
    """What is wrong with a kernel that was compiled for 16-bit activations: it cannot be launched, or spills much."""
    most = SPILLS.get(kernel.kernel, (MAX_SPILL_BYTES, ""))[0]
    found = kernel.problems()
    if kernel.spill_store_bytes > most:
        found.append(f"{kernel.spill_store_bytes} bytes spilled a thread, of {most}")
    return [f"{kernel.kernel} ({kernel.arguments}): {complaint}" for complaint in found]


def without_launch(names: Iterable[str], compiled: Iterable[Compiled]) -> list[str]:
    """Kernels by name that no launch reached."""
    return sorted(set(names) - {kernel.kernel for kernel in compiled})


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ints(*shape: int) -> Tensor:
    return meta(*shape, dtype=torch.int32)


def longs(*shape: int) -> Tensor:
    return meta(*shape, dtype=torch.int64)


def floats(*shape: int) -> Tensor:
    return meta(*shape, dtype=FP32)
