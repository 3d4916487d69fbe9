"""What the device reported beside each timed case: clocks, temperature, power, throttle reasons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastkernels.report.view import Row, View


@dataclass(frozen=True)
class Clocks:
    """What the device reported beside one timed case."""

    row: Row
    sm_mhz: tuple[float, float, float]
    temperature_c: tuple[float, float, float]
    power_w: tuple[float, float, float]
    throttled: Sequence[str]


def clocks(view: View) -> list[Clocks]:
    """Clocks, temperature, power and throttle reasons of each timed case that has them."""
    found = []
    for row in view.timed:
        assert row.timing is not None
        read = [s["clocks"] for s in row.timing["samples"] if s["clocks"]]
        if read:
            reasons = 0
            for values in read:
                reasons |= int(values.get("throttle_reasons") or 0)
            sm_mhz, temperature_c, power_w = (_span(read, key) for key in ("sm_mhz", "temperature_c", "power_w"))
            found.append(Clocks(row, sm_mhz, temperature_c, power_w, throttle_names(reasons)))
    return found


def _span(read: Sequence[dict[str, Any]], key: str) -> tuple[float, float, float]:
    values = sorted(float(v[key]) for v in read if v.get(key) is not None) or [math.nan]
    return values[0], values[len(values) // 2], values[-1]


# https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html
_THROTTLE = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
    0x100: "display clocks",
}


def throttle_names(reasons: int) -> list[str]:
    """The set bits of NVML's clock event reasons in words; idle is none."""
    known = [name for bit, name in _THROTTLE.items() if reasons & bit and bit != 0x1]
    unknown = reasons & ~sum(_THROTTLE)
    return [*known, f"0x{unknown:x}"] if unknown else known
