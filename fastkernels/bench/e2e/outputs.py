"""Answers of a model that makes no tokens: digests of its results, and how far two runs' tensors are apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

MOST_KEPT_BYTES = 2 << 30
"""Of a side's results, on disk until they are compared; what is more has its digest alone."""


def result_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of each tensor, in the order of names."""
    state = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        state.update(f"{name} {t.dtype} {list(t.shape)}\n".encode())
        state.update(_bits(t).numpy().tobytes())
    return state.hexdigest()


def digest_of(digests: Iterable[str]) -> str:
    """Of a pass: over its results' digests, in the order of requests."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


class KeptOutputs:
    """A side's results in a folder, a file a request, until `most_bytes` are there."""

    def __init__(self, folder: Path, most_bytes: int = MOST_KEPT_BYTES) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self._num_bytes = 0

    def keep(self, repeat: int, index: int, tensors: Mapping[str, Tensor]) -> None:
        self._num_bytes += sum(t.numel() * t.element_size() for t in tensors.values())
        if self._num_bytes <= self.most_bytes:
            copies = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
            save_file(copies, self.folder / f"{repeat}-{index}.safetensors")


@dataclass
class OutputAgreement:
    """One output by name, over pairs of requests: a candidate's beside the baseline's.

    num_equal: bit for bit. num_unlike: another shape or dtype, or numbers that are not finite on one side alone.
    largest_relative_error: the largest difference in a tensor over the largest number of the baseline's (over 1 where
    that is 0). It and least_cosine are of floating-point outputs; None without a pair that can be compared.
    """

    name: str
    num_pairs: int = 0
    num_equal: int = 0
    num_unlike: int = 0
    largest_relative_error: float | None = None
    least_cosine: float | None = None

    def add(self, expected: Tensor | None, found: Tensor | None) -> None:
        self.num_pairs += 1
        if expected is None or found is None or (expected.shape, expected.dtype) != (found.shape, found.dtype):
            self.num_unlike += 1
            return
        self.num_equal += torch.equal(_bits(expected), _bits(found))
        if not expected.is_floating_point():
            return
        a, b = expected.double().flatten(), found.double().flatten()
        is_finite = a.isfinite()
        if not torch.allclose(a[~is_finite], b[~is_finite], equal_nan=True) or not b[is_finite].isfinite().all():
            self.num_unlike += 1
            return
        a, b = a[is_finite], b[is_finite]
        error, cosine = _relative_error(a, b), _cosine(a, b)
        self.largest_relative_error = max(error, self.largest_relative_error or 0.0)
        self.least_cosine = cosine if self.least_cosine is None else min(cosine, self.least_cosine)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _relative_error(expected: Tensor, found: Tensor) -> float:
    if not expected.numel():
        return 0.0
    scale = float(expected.abs().max())
    return float((expected - found).abs().max()) / (scale or 1.0)


def _cosine(a: Tensor, b: Tensor) -> float:
    """1 of two tensors of zeros, 0 of one."""
    lengths = float(a.norm()), float(b.norm())
    if not all(lengths):
        return float(lengths[0] == lengths[1])
    return max(-1.0, min(1.0, float(a @ b) / (lengths[0] * lengths[1])))


def compare_outputs(expected: Path, found: Path, repeats: Iterable[int]) -> list[dict[str, Any]]:
    """Every result of those repeats that both folders hold, by output name."""
    agreements: dict[str, OutputAgreement] = {}
    for repeat in repeats:
        for path in sorted(expected.glob(f"{repeat}-*.safetensors")):
            if (found / path.name).is_file():
                ours, theirs = load_file(path), load_file(found / path.name)
                for name in sorted({*ours, *theirs}):
                    agreement = agreements.setdefault(name, OutputAgreement(name))
                    agreement.add(ours.get(name), theirs.get(name))
    return [asdict(agreement) for agreement in agreements.values()]
