"""Floats and bytes too large to keep: their statistics, and values drawn from them that are the same everywhere."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """A normal distribution cut off at +-absmax, and the seed that draws from it."""

    mean: float
    std: float
    absmax: float
    seed: int


def measure(name: str, tensor: Tensor) -> Moments:
    """The moments of the finite values; the seed follows from them, the name and the shape."""
    mean = std = absmax = 0.0
    values = tensor.detach().flatten().float()
    values = values[values.isfinite()]
    if values.numel():
        mean, absmax = values.mean().item(), values.abs().max().item()
        std = values.std(correction=0).item()
    text = json.dumps([name, list(tensor.shape), str(tensor.dtype), mean, std, absmax])
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little")
    return Moments(mean, std, absmax, seed)


def draw(moments: Moments, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Drawn on the CPU whatever device is used later: generators of two devices give different values."""
    generator = torch.Generator(device="cpu").manual_seed(moments.seed)
    values = torch.empty(shape, dtype=torch.float32, device="cpu")
    values.normal_(moments.mean, moments.std, generator=generator)
    if not dtype.is_floating_point:  # bytes
        return values.round_().clamp_(0, moments.absmax).to(dtype)
    return values.clamp_(-moments.absmax, moments.absmax).to(dtype)


def to_json(moments: Moments) -> dict[str, float | int]:
    return asdict(moments)
