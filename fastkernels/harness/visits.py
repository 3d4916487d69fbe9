"""What was measured of one case: visits to a side, each some calls in a row."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median

from fastkernels.harness.records import Samples

BASELINE, BASELINE_AGAIN, CANDIDATE = "baseline", "baseline again", "candidate"


@dataclass
class Visit(Samples):
    """stage_ns: on a GPU between release and first event, on a CPU while a stopped worker woke. On a GPU,
    is_held: whether the whole call was enqueued by then."""

    stage_ns: list[int] = field(default_factory=list)
    is_held: list[bool] = field(default_factory=list)


@dataclass
class Timed:
    """All visits of one case. late_ns: what the candidate's every call is charged for by the judge's clock, because it
    answered by so much later than the baseline after it had claimed to be done."""

    samples: list[Visit] = field(default_factory=list)
    num_checked: int = 0
    late_ns: float = 0.0

    def pairs(self, first: str, second: str, clock: str) -> list[list[float]]:
        """log(first / second) of neighbouring visits, one list a restart; cold visits only."""
        by_block: dict[tuple[int, int], dict[str, list[float]]] = {}
        for sample in self.samples:
            if sample.is_cold and sample.block >= 0:
                visits = by_block.setdefault((sample.restart, sample.block), {})
                visits.setdefault(sample.side, []).append(self._charged_ns(sample, clock))
        restarts: dict[int, list[float]] = {}
        for (restart, _), visits in sorted(by_block.items()):
            for a, b in zip(visits.get(first, []), visits.get(second, []), strict=False):
                restarts.setdefault(restart, []).append(math.log(a / b))
        return list(restarts.values())

    def median_us(self, side: str, clock: str, *, is_cold: bool = True) -> float | None:
        chosen = [s for s in self.samples if s.side == side and s.is_cold == is_cold and s.block >= 0]
        return median(self._charged_ns(s, clock) for s in chosen) / 1e3 if chosen else None

    def _charged_ns(self, sample: Samples, clock: str) -> float:
        is_late = clock == "claim" and sample.side == CANDIDATE
        return visit_ns(sample, clock) + (self.late_ns if is_late else 0.0)


def visit_ns(sample: Samples, clock: str) -> float:
    """The time of a visit: on a GPU the median of its calls by events; by the judge's clock their least, because
    whatever else the machine does can only add to it."""
    return max(1.0, float(median(sample.device_ns) if clock == "device" else min(sample.claim_ns)))
