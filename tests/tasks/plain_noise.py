"""fastkernels.noise in plain Python integers: what every device must reproduce."""

from __future__ import annotations

import math


def splitmix64(seed: int, counter: int) -> int:
    mask, gamma = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        return x ^ (x >> 31)

    return mix((mix((seed + gamma) & mask) + counter * gamma) & mask)


def gumbel(seed: int, counter: int) -> float:
    return -math.log(-math.log(((splitmix64(seed, counter) >> 12) + 0.5) * 2.0**-52))
