"""What the samples of a timed case come to: figures that the judge writes, and who reads a record reckons again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fastkernels.harness.records import Samples
from fastkernels.harness.visits import BASELINE, BASELINE_AGAIN, CANDIDATE, Timed, Visit
from fastkernels.scoring.statistics import noise_floor, ratio_interval, speed_verdict

CLOCKS = {"device": "device events", "claim": "judge"}
"""TimingRecord.clock by the word of Timed."""

LEAST_NOISE = {"cpu": 0.03, "cuda": 0.01}
"""The smallest noise floor on a kind of device."""


@dataclass(frozen=True)
class TimedFigures:
    """As in TimingRecord."""

    ratio: float
    low: float
    high: float
    num_pairs: int
    noise_floor: float
    speed: str
    baseline_us: float
    candidate_us: float
    warm_baseline_us: float | None
    warm_candidate_us: float | None


def device_kind(device: str) -> str:
    """ "cuda" of "cuda:1"."""
    return "cuda" if device.startswith("cuda") else "cpu"


def clock_of(device: str) -> str:
    """The clock that counts on a device, in the word of Timed."""
    return "device" if device_kind(device) == "cuda" else "claim"


def timed_figures(timed: Timed, device: str, least_noise: float) -> TimedFigures:
    """Errors: ValueError when baseline and candidate, or the baseline and itself, have no pair."""
    clock = clock_of(device)
    interval = ratio_interval(timed.pairs(BASELINE, CANDIDATE, clock))
    identical = ratio_interval(timed.pairs(BASELINE, BASELINE_AGAIN, clock))
    floor = noise_floor(identical, least_noise)
    return TimedFigures(
        ratio=interval.ratio,
        low=interval.low,
        high=interval.high,
        num_pairs=interval.num_pairs,
        noise_floor=floor,
        speed=speed_verdict(interval, floor),
        baseline_us=timed.median_us(BASELINE, clock) or 0.0,
        candidate_us=timed.median_us(CANDIDATE, clock) or 0.0,
        warm_baseline_us=timed.median_us(BASELINE, clock, is_cold=False),
        warm_candidate_us=timed.median_us(CANDIDATE, clock, is_cold=False),
    )


def timed_of(timing: Mapping[str, Any]) -> Timed:
    """What was measured, from a TimingRecord as JSON."""
    names = [field.name for field in fields(Samples)]
    samples = [Visit(**{name: sample[name] for name in names}) for sample in timing["samples"]]
    return Timed(samples, timing["num_checked"], 1e3 * timing["late_us"])
