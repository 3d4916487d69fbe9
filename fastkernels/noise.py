"""Random numbers without state: the same (seed, counter) gives the same bits on every device and in any batch."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea & Flood 2014, https://doi.org/10.1145/2714064.2660195), as signed 64-bit numbers.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical: torch shifts int64 arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MULTIPLIER_1
    x = (x ^ _shift_right(x, 27)) * _MULTIPLIER_2
    return x ^ _shift_right(x, 31)


def splitmix64(seeds: Tensor, positions: Tensor) -> Tensor:
    """mix(seed + (position + 1) * G): output `position` of each seed's generator, 64 bits as int64, wrapping."""
    return _mix(seeds + (positions + 1) * _GAMMA)


def random_bits(seeds: Tensor, counters: Tensor) -> Tensor:
    """mix(mix(seed + G) + counter * G): 64 bits as int64, wrapping; seeds and counters broadcast.

    Shapes:  seeds, counters: int64, any two that broadcast.
    """
    return _mix(_mix(seeds + _GAMMA) + counters * _GAMMA)


def random_uniform(seeds: Tensor, counters: Tensor) -> Tensor:
    """(top 52 bits + 1/2) / 2^52 in float64: exact on every device, never 0 or 1."""
    return (_shift_right(random_bits(seeds, counters), 12).double() + 0.5) * 2.0**-52


def random_normal(seeds: Tensor, counters: Tensor) -> Tensor:
    """Near-normal float32, mean 0 and deviation 1, within +-3.47: the sum of the four 16-bit parts, centred and scaled.

    Sums of integers and one multiplication: the same value on every device, unlike a logarithm.
    """
    bits = random_bits(seeds, counters)
    total = sum(((bits >> shift) & 0xFFFF for shift in (0, 16, 32, 48)), start=torch.zeros_like(bits))
    return (total - 2 * 0xFFFF).float() * (3.0 / (2.0**32 - 1.0)) ** 0.5


def seed_of(name: str, seed: int) -> int:
    """A 63-bit seed from a name and a seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little") >> 1
