"""Collectives over the tensor-parallel group, as functions that return new tensors.

Tensors without data (on "meta") need no group: their shapes are all that comes back.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from fastkernels.distributed.tensor_parallel import tp_size
from fastkernels.errors import EnvironmentProblem


def _require_group() -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise EnvironmentProblem(
            f"A collective over {tp_size()} ranks needs a process group: call torch.distributed.init_process_group."
        )


def gather_ranks(x: Tensor) -> list[Tensor]:
    """Every rank's tensor, in the order of the ranks.

    Errors: EnvironmentProblem without a process group.
    """
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(tp_size())]
    if not x.is_meta:
        _require_group()
        dist.all_gather(parts, x.contiguous())
    return parts


def sum_ranks(x: Tensor) -> Tensor:
    """The sum over ranks, in the dtype of x.

    Errors: EnvironmentProblem without a process group.
    """
    total = x.clone(memory_format=torch.contiguous_format)
    if not x.is_meta:
        _require_group()
        dist.all_reduce(total)
    return total
