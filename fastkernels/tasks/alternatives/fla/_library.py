"""Imports flash-linear-attention when an op is built, and moves states between slots and what it takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastkernels.tasks.alternatives.library import library_function


def fla_function(module: str, name: str) -> Any:
    """Errors: those of library_function."""
    return library_function("fla", "flash-linear-attention>=0.5", f"fla.{module}", name)


def put_back(states: Tensor, state_indices: Tensor, last: Tensor, query_start_loc: Tensor) -> None:
    """The sequences' last states into their slots; one without rows leaves its slot as it is.

    Shapes:  states: [num_slots, ...]; last: [num_seqs, ...]; query_start_loc: [num_seqs + 1].
    """
    slots = state_indices.long()
    has_rows = (query_start_loc.diff() > 0).view(-1, *[1] * (last.dim() - 1))
    states[slots] = torch.where(has_rows, last.to(states.dtype), states[slots])
