"""Whether the times of a candidate are all that it spent: its clocks against each other and against the baseline's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from fastkernels.harness.records import TimingRecord
from fastkernels.harness.verdict import Rejection, Verdict
from fastkernels.harness.visits import BASELINE, CANDIDATE, Timed, Visit
from fastkernels.scoring.statistics import percentile

LEAST_SETTLE_NS, LEAST_UNSEEN_NS, LEAST_STAGE_NS = 20e3, 10e3, 4e3
"""What an answer may come later, a GPU call take outside of its events, and the filling of its inputs last longer
than the baseline's, however steady that is."""
MOST_ALLOWED_NS = 100e3
"""The same, however unsteady the baseline is, as it is on a machine with other work."""
UNHELD_NS = 150e3
"""A call that itself waits for the device copies its answer only when the host has come to it again: an honest one
took 85 us more than the baseline on an H200, another 167 us less (its events saw the host's part), a third 397 us cold
and 521 us warm (benchmarks/results/h200/llama_ops.json)."""
SHARE_ALLOWED = 0.05
SETTLE_SHARE = 0.5
"""Of the baseline's promptest answers, on a CPU: honest threads end after they were joined, the later the slower the
machine is, and so are its answers. Nobody gains by it: what is late is charged (`late_ns`)."""
_LEAST_SAMPLES = 16


@dataclass(frozen=True)
class Pair:
    """Nanoseconds of the baseline's and of the candidate's calls, with what the candidate may differ by."""

    baseline: Sequence[float]
    candidate: Sequence[float]
    least: float

    @property
    def excess(self) -> tuple[float, float]:
        """How much longer the candidate's calls are, and what is allowed, where the one exceeds the other more.

        Unpaid work delays every call, or most: the promptest tenths are compared, which noise hardly moves, and the
        medians, within what the baseline itself strays by.
        """
        return max(self._prompt(1), self._middle(1), key=lambda found: found[0] - found[1])

    @property
    def shortfall(self) -> tuple[float, float]:
        """The same of calls that are shorter."""
        return max(self._prompt(-1), self._middle(-1), key=lambda found: found[0] - found[1])

    def _prompt(self, sign: int) -> tuple[float, float]:
        first = percentile(self.baseline, 0.1)
        return sign * (percentile(self.candidate, 0.1) - first), self._within(
            4 * (percentile(self.baseline, 0.25) - first)
        )

    def _middle(self, sign: int) -> tuple[float, float]:
        strays = percentile(self.baseline, 0.9) - percentile(self.baseline, 0.1)
        return sign * (median(self.candidate) - median(self.baseline)), self._within(strays)

    def _within(self, strays: float) -> float:
        return max(self.least, min(MOST_ALLOWED_NS, strays))

    def is_enough(self) -> bool:
        return min(len(self.baseline), len(self.candidate)) >= _LEAST_SAMPLES


def check_clocks(timed: Timed, *, is_remote: bool) -> None:
    """What came after DONE, and on a GPU what the events around forward did not see, may exceed the baseline's by no
    more than noise; nor may it fall short of it, for then the cache was not flushed.

    Errors: Rejection CHEATING with the figures.
    """
    share = SHARE_ALLOWED * 1e3 * (timed.median_us(CANDIDATE, "device" if is_remote else "claim") or 0.0)
    settled = _settled(timed)
    prompt = 0.0 if is_remote else SETTLE_SHARE * percentile(settled.baseline, 0.1)
    _check_excess(
        "the answer came {excess:.0f} us later after the call had claimed to be done than the baseline's",
        Pair(settled.baseline, settled.candidate, max(share, LEAST_SETTLE_NS, min(MOST_ALLOWED_NS, prompt))),
    )
    if not is_remote:
        _check_excess(
            "{excess:.0f} us more than the baseline's passed from the call's inputs being there to the clock's start",
            _woken(timed),
        )
    for is_cold in (True, False) if is_remote else ():
        _check_device(timed, share, is_cold=is_cold)
    cold, warm = (timed.median_us(CANDIDATE, "device", is_cold=is_cold) for is_cold in (True, False))
    unheld = 0.0 if is_held(_visits(timed, CANDIDATE)) else UNHELD_NS / 1e3
    if is_remote and cold and warm and cold < 0.9 * warm - 1 - unheld:
        raise Rejection(
            Verdict.CHEATING,
            f"Work ahead of the clock: with caches flushed a call took {cold:.1f} us, without {warm:.1f} us.",
        )


def late_ns(timed: Timed) -> float:
    """By how much later than the baseline the candidate woke to its inputs, and answered after it had claimed to be
    done: of each what is more than LEAST_SETTLE_NS, on a CPU."""
    late = [pair.excess[0] if pair.is_enough() else 0.0 for pair in (_settled(timed), _woken(timed))]
    return sum(one for one in late if one > LEAST_SETTLE_NS)


def check_floor(timing: TimingRecord) -> None:
    """Errors: Rejection CHEATING when a call was faster than its bytes and flops allow."""
    if timing.candidate_us < timing.floor_us:
        raise Rejection(
            Verdict.CHEATING,
            f"A call took {timing.candidate_us:.3f} us; moving its {timing.num_bytes} bytes takes at least "
            f"{timing.floor_us:.3f} us on this machine.",
        )


def _check_device(timed: Timed, share: float, *, is_cold: bool) -> None:
    """The filling of the inputs with the flush, by the device; all the rest, by the judge's clock."""
    baseline, candidate = (_visits(timed, side, is_cold=is_cold) for side in (BASELINE, CANDIDATE))
    least = LEAST_UNSEEN_NS if is_held(candidate) else UNHELD_NS
    stage = Pair(_stage(baseline), _stage(candidate), LEAST_STAGE_NS)
    unseen = Pair(_unseen(baseline), _unseen(candidate), max(share, least))
    _check_excess("{excess:.0f} us more than the baseline's passed before the clock was started", stage)
    _check_excess("the judge's clock saw {excess:.0f} us more than the device, beyond the baseline's", unseen)
    if not is_held(candidate):  # the events see the host's part too: less is left, but never less than nothing
        unseen = Pair([0.0] * len(unseen.candidate), unseen.candidate, LEAST_UNSEEN_NS)
    for what, pair in (("before the clock was started", stage), ("that the device did not see", unseen)):
        shortfall, allowance = pair.shortfall if pair.is_enough() else (0.0, 0.0)
        if shortfall > allowance:
            raise Rejection(
                Verdict.CHEATING,
                f"Caches were not flushed, or the times are false: {shortfall / 1e3:.0f} us less than the baseline's "
                f"passed {what} (allowance {allowance / 1e3:.0f} us).",
            )


def is_held(visits: Sequence[Visit]) -> bool:
    """Whether most calls were enqueued whole before the device was let go: one that waits for it cannot be."""
    held = [one for visit in visits for one in visit.is_held]
    return sum(held) > 0.5 * len(held)


def _visits(timed: Timed, side: str, *, is_cold: bool = True) -> list[Visit]:
    return [s for s in timed.samples if s.side == side and s.is_cold == is_cold and s.block >= 0]


def _settled(timed: Timed) -> Pair:
    baseline, candidate = ([n for s in _visits(timed, side) for n in s.settle_ns] for side in (BASELINE, CANDIDATE))
    return Pair(baseline, candidate, LEAST_SETTLE_NS)


def _woken(timed: Timed) -> Pair:
    return Pair(_stage(_visits(timed, BASELINE)), _stage(_visits(timed, CANDIDATE)), LEAST_SETTLE_NS)


def _stage(visits: Sequence[Visit]) -> list[float]:
    return [n for visit in visits for n in visit.stage_ns]


def _unseen(visits: Sequence[Visit]) -> list[float]:
    times = [t for v in visits for t in zip(v.claim_ns, v.stage_ns, v.device_ns, strict=True)]
    return [claim - stage - device for claim, stage, device in times]


def _check_excess(text: str, pair: Pair) -> None:
    excess, allowance = pair.excess if pair.is_enough() else (0.0, 0.0)
    if excess > allowance:
        figures = f"{text.format(excess=excess / 1e3)} (allowance {allowance / 1e3:.0f} us)"
        raise Rejection(Verdict.CHEATING, f"Unpaid work: {figures}.")
