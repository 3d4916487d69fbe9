"""Kernel-level headlines as published: what a blocked target counts for, and how far tolerances decide.

Source: appendix C, tables 4 and 5, of the FastKernels paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from fastkernels.scoring.macroeval import TOLERANCE_SCALES
from fastkernels.scoring.statistics import geometric_mean

PUNITIVE_SPEEDUP = 0.01
"""Imputed for what is not right: 0 would make every geometric mean 0."""


class Policy(StrEnum):
    """What becomes of targets that the harness blocked before the agent could try."""

    DROP_BLOCKED = "a"  # out of the coverage too
    DEFAULT = "default"  # out of the speedup, not of the coverage
    PUNITIVE = "b"  # blocked and wrong ones count as PUNITIVE_SPEEDUP


@dataclass(frozen=True)
class Target:
    """One op of an agent. speedup: of a target that is right, None otherwise. is_untimed: it is right and has none.
    error_ratio: the largest error over its tolerance in any scenario, where it was kept; at most 1 is right."""

    name: str
    is_blocked: bool = False
    speedup: float | None = None
    error_ratio: float | None = None
    is_untimed: bool = False

    @property
    def is_right(self) -> bool:
        return self.speedup is not None or self.is_untimed

    def __post_init__(self) -> None:
        if self.is_blocked and self.speedup is not None:
            raise ValueError(f"Target {self.name!r} is blocked and has a speedup of {self.speedup}: it did not run.")
        if self.is_untimed and (self.is_blocked or self.speedup is not None):
            raise ValueError(f"Target {self.name!r} was not timed, and is blocked or has a speedup of {self.speedup}.")
        if self.speedup is not None and not self.speedup > 0:
            raise ValueError(f"The speedup of target {self.name!r} is {self.speedup}; it is over 0.")


@dataclass(frozen=True)
class Headline:
    """Coverage is num_correct over num_targets. speedup: the geometric mean, None of nothing."""

    num_correct: int
    num_targets: int
    speedup: float | None


def headline(targets: Sequence[Target], policy: Policy = Policy.DEFAULT) -> Headline:
    """Coverage and speedup under a policy."""
    speedups = [target.speedup for target in targets if target.speedup is not None]
    num_correct, num_targets = sum(target.is_right for target in targets), len(targets)
    if policy is Policy.DROP_BLOCKED:
        num_targets = sum(not target.is_blocked for target in targets)
    if policy is Policy.PUNITIVE:
        speedups += [PUNITIVE_SPEEDUP] * (num_targets - num_correct)
    return Headline(num_correct, num_targets, geometric_mean(speedups) if speedups else None)


def tolerance_sweep(
    targets: Sequence[Target], scales: Sequence[float] = TOLERANCE_SCALES, policy: Policy = Policy.DEFAULT
) -> dict[float, Headline]:
    """The headline by scale of the tolerances: a target is right while its error ratio is at most the scale.

    Over 1 nothing becomes right that has no speedup: it was not timed.
    Errors: ValueError when a target that is right has no error ratio.
    """
    unknown = [target.name for target in targets if target.is_right and target.error_ratio is None]
    if unknown:
        raise ValueError(
            f"{len(unknown)} targets are right and have no error ratio ({', '.join(unknown[:5])}); what was judged "
            "right or wrong alone cannot be judged by another tolerance."
        )
    return {scale: headline([_at(target, scale) for target in targets], policy) for scale in scales}


def _at(target: Target, scale: float) -> Target:
    if target.error_ratio is not None and target.error_ratio <= scale:
        return target
    return replace(target, speedup=None, is_untimed=False)
