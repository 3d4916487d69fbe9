"""An answer as the judge reads it: a description that the worker wrote, and raw bytes; copies of both (look.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastkernels.harness.arena import aligned, dtype_of, extent
from fastkernels.harness.sample import Sample
from fastkernels.harness.verdict import Rejection, Verdict

Sampled = tuple[int, Tensor]
"""What chose the bytes of a large answer that were asked for first, and those bytes."""
MALFORMED = (KeyError, TypeError, ValueError, OverflowError, RuntimeError)
"""What reading a description that does not hold what it should comes to; of these OutOfMemoryError is the judge's own
trouble."""


@dataclass(frozen=True)
class Part:
    """One returned value as the worker described it and as its bytes are."""

    kind: str
    description: Mapping[str, Any]
    tensor: Tensor | None = None


def record_of(description: bytes) -> dict[str, Any]:
    """What a description says of an answer.

    Errors: Rejection CHEATING for what the worker found wrong with its device, RUNTIME_ERROR for what was raised, or
    for what is no description.
    """
    try:
        record = json.loads(description)
        json.dumps(record, ensure_ascii=False).encode()  # no half of a surrogate pair, which no report could hold
    except (ValueError, RecursionError) as error:
        raise malformed(error) from None
    if not isinstance(record, dict):
        raise malformed("it is no JSON object")
    if record.get("problem"):
        raise Rejection(Verdict.CHEATING, f"Between two calls {str(record['problem'])[:500]}.")
    if "error" in record:
        raise Rejection(Verdict.RUNTIME_ERROR, str(record["error"])[-6000:])
    return record


def malformed(error: object) -> Rejection:
    return Rejection(Verdict.RUNTIME_ERROR, f"The answer's description is malformed: {str(error)[:500]}.")


def part_bytes(part: Mapping[str, Any]) -> int:
    """Bytes of a described tensor; 0 for what is none that could be copied."""
    if part["kind"] != "tensor" or part.get("problem"):
        return 0
    shape, stride = [int(n) for n in part["shape"]], [int(n) for n in part["stride"]]
    return extent(shape, stride) * dtype_of(str(part["dtype"])).itemsize


def check_sample(raw: Tensor, sampled: Sampled, parts: Sequence[Mapping[str, Any]]) -> None:
    """What was given first must be of the answer that was given then."""
    lot, found = sampled
    chosen = Sample.drawn(lot, [part_bytes(part) for part in parts])
    if chosen is None:
        return
    start = starts(parts)[chosen.part]
    if not chosen.of(_bytes_at(raw, start, part_bytes(parts[chosen.part]))).equal(found[: chosen.num_bytes]):
        raise Rejection(Verdict.CHEATING, "The answer was another one when the call had claimed to be done.")


def starts(parts: Sequence[Mapping[str, Any]]) -> list[int]:
    """Where each part lies, and where the last one ends: one behind the other, whatever the worker says."""
    offsets = [0]
    for part in parts:
        offsets[-1] = aligned(offsets[-1]) if part_bytes(part) else offsets[-1]
        offsets.append(offsets[-1] + part_bytes(part))
    return offsets


def read_parts(raw: Tensor, parts: Sequence[Mapping[str, Any]]) -> tuple[Part, ...]:
    """raw: the bytes (uint8) of an answer, which its parts keep. Errors: one of MALFORMED."""
    return tuple(_read_part(raw, start, part) for start, part in zip(starts(parts), parts, strict=False))


def _read_part(raw: Tensor, start: int, part: Mapping[str, Any]) -> Part:
    kind = str(part["kind"])
    if kind != "tensor" or part.get("problem"):
        return Part(kind, part)
    shape, stride = [int(n) for n in part["shape"]], [int(n) for n in part["stride"]]
    dtype, num_bytes = dtype_of(str(part["dtype"])), part_bytes(part)
    if not num_bytes:
        return Part(kind, part, torch.empty(shape, dtype=dtype))
    return Part(kind, part, _bytes_at(raw, start, num_bytes).view(dtype).as_strided(shape, stride))


def _bytes_at(raw: Tensor, start: int, num_bytes: int) -> Tensor:
    """Errors: ValueError when they are not all there."""
    if num_bytes < 0 or start + num_bytes > len(raw):
        raise ValueError(f"{num_bytes} bytes at {start} lie outside of the {len(raw)} bytes of an answer")
    return raw[start : start + num_bytes]
