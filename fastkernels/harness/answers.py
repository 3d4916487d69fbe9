"""An answer as the judge reads it: descriptions that the worker wrote, raw bytes in shared memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastkernels.harness.arena import Arena, dtype_of, extent
from fastkernels.harness.sample import Sample
from fastkernels.harness.verdict import Rejection, Verdict

Sampled = tuple[int, Tensor]
"""What chose the bytes of a large answer that were asked for first, and those bytes."""


@dataclass(frozen=True)
class Part:
    """One returned value as the worker described it and as its bytes are."""

    kind: str
    description: Mapping[str, Any]
    tensor: Tensor | None = None


def part_bytes(part: Mapping[str, Any]) -> int:
    """Bytes of a described tensor; 0 for what is none that could be copied."""
    if part["kind"] != "tensor" or part.get("problem"):
        return 0
    shape, stride = [int(n) for n in part["shape"]], [int(n) for n in part["stride"]]
    return extent(shape, stride) * dtype_of(str(part["dtype"])).itemsize


def check_sample(arena: Arena, sampled: Sampled, parts: Sequence[Mapping[str, Any]]) -> None:
    """What was given first must be of the answer that was given then."""
    lot, found = sampled
    chosen = Sample.drawn(lot, [part_bytes(part) for part in parts])
    if chosen is None:
        return
    part = parts[chosen.part]
    if not chosen.of(arena.region(int(part["start"]), part_bytes(part))).equal(found[: chosen.num_bytes]):
        raise Rejection(Verdict.CHEATING, "The answer was another one when the call had claimed to be done.")


def read_part(arena: Arena, part: Mapping[str, Any]) -> Part:
    kind = str(part["kind"])
    if kind != "tensor" or part.get("problem"):
        return Part(kind, part)
    shape, stride = [int(n) for n in part["shape"]], [int(n) for n in part["stride"]]
    dtype, num_bytes = dtype_of(str(part["dtype"])), part_bytes(part)
    raw = arena.region(int(part["start"]), num_bytes).clone()
    return Part(kind, part, raw.view(dtype).as_strided(shape, stride) if num_bytes else torch.empty(shape, dtype=dtype))
