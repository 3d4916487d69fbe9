"""What MacroEval is reckoned from: one item is one scenario (model, dtype, ranks) with one implementation set."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Family(StrEnum):
    """Architectures whose answers are compared alike: each has one discrepancy D_f (scoring/discrepancy.py)."""

    LANGUAGE = "language"
    SPEECH = "speech"
    EMBEDDING = "embedding"
    CLASSIFICATION = "classification"
    DETECTION = "detection"
    RANKING = "ranking"
    IMAGE = "image"
    TRAJECTORY = "trajectory"
    RENDERING = "rendering"
    POINTS = "points"


class Outcome(StrEnum):
    """What became of an item. Only MEASURED ones can be valid; all count in every denominator."""

    MEASURED = "MEASURED"
    INVALID = "INVALID"  # crash, hang, wrong shape or type, illegal access, NaN
    NEVER_CALLED = "NEVER_CALLED"  # nothing of the set ran in this model
    BLOCKED = "BLOCKED"  # the machine could not run it: too few devices


@dataclass(frozen=True)
class Thresholds:
    """Of a family: within `good` a discrepancy is the reference's own noise (g), from `bad` on the answer is unusable
    (f); an item is valid when its correctness reaches `tau`."""

    good: float
    bad: float
    tau: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.good < self.bad:
            raise ValueError(f"good is {self.good} and bad {self.bad}; 0 <= good < bad must hold.")
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau is {self.tau}; it is over 0 and at most 1.")


Restarts = tuple[tuple[float, ...], ...]
"""log(reference seconds / candidate seconds) of each pair, one tuple a restart; over 0: the candidate is faster."""


@dataclass(frozen=True)
class Item:
    """discrepancies: of each request. throughput, latency: pairs; both empty when the item is not MEASURED.

    noise_floor: how far the reference strays from itself, as a ratio minus 1.
    """

    name: str
    family: str
    outcome: Outcome
    thresholds: Thresholds
    discrepancies: tuple[float, ...] = ()
    throughput: Restarts = ()
    latency: Restarts = ()
    noise_floor: float = 0.0
