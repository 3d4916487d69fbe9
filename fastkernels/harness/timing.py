"""Speed of a candidate beside the baseline: interleaved, on inputs that change, answers checked.

Each restart has fresh processes: the baseline, the baseline again (for the noise floor) and the
candidate. A block visits them in a random ABBA or BAAB order; a visit is a few calls (visit_ns).
The ratio is taken per pair of neighbouring visits.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch

from fastkernels.harness.pool import PlannedCall, Pool
from fastkernels.harness.records import Samples
from fastkernels.harness.side import Call, Side
from fastkernels.harness.telemetry import Telemetry
from fastkernels.harness.vary import draw_variation, touch
from fastkernels.harness.verdict import Rejection, Verdict
from fastkernels.scoring.statistics import percentile

BASELINE, BASELINE_AGAIN, CANDIDATE = "baseline", "baseline again", "candidate"
FETCH_SHARE = 0.25
WARM_UP_VISITS = 2
_QUIET_SECONDS = 0.1
_LEAST_SAMPLES = 5


@dataclass(frozen=True)
class Protocol:
    """How much is measured; fixed before anything is seen."""

    num_restarts: int = 3
    num_blocks: int = 20
    calls_per_visit: int = 4

    @classmethod
    def quick(cls) -> Protocol:
        return cls(num_restarts=1, num_blocks=8, calls_per_visit=3)


@dataclass
class Timed:
    """All visits of one case."""

    samples: list[Samples] = field(default_factory=list)
    num_checked: int = 0

    def pairs(self, first: str, second: str, clock: str) -> list[list[float]]:
        """log(first / second) of neighbouring visits, one list a restart; cold visits only."""
        by_block: dict[tuple[int, int], dict[str, list[float]]] = {}
        for sample in self.samples:
            if sample.is_cold and sample.block >= 0:
                visits = by_block.setdefault((sample.restart, sample.block), {})
                visits.setdefault(sample.side, []).append(visit_ns(sample, clock))
        restarts: dict[int, list[float]] = {}
        for (restart, _), visits in sorted(by_block.items()):
            for a, b in zip(visits.get(first, []), visits.get(second, []), strict=False):
                restarts.setdefault(restart, []).append(math.log(a / b))
        return list(restarts.values())

    def median_us(self, side: str, clock: str, *, is_cold: bool = True) -> float | None:
        times = [visit_ns(s, clock) for s in self.samples if s.side == side and s.is_cold == is_cold and s.block >= 0]
        return median(times) / 1e3 if times else None


def visit_ns(sample: Samples, clock: str) -> float:
    """The time of a visit: on a GPU the median of its calls by events; by the judge's clock their least, because
    whatever else the machine does can only add to it."""
    return max(1.0, float(median(sample.device_ns) if clock == "device" else min(sample.claim_ns)))


Checker = Callable[[Side, PlannedCall, Call], None]


def run_restart(
    restart: int, sides: dict[str, Side], protocol: Protocol, check: Checker, timed: Timed, *, is_remote: bool
) -> None:
    """One restart's visits, appended to `timed`.

    Errors: Rejection from a candidate's call or a failed check.
    """
    telemetry = Telemetry(is_remote)
    if is_remote:
        _calibrate_hold(sides, protocol, check)
    for side in sides.values():
        for _ in range(WARM_UP_VISITS):
            _visit(side, protocol, check, timed, telemetry, (restart, -1, ""), is_cold=True)
    quiet_block = secrets.randbelow(protocol.num_blocks)
    for block in range(protocol.num_blocks):
        if block == quiet_block:
            _check_quiet(sides[CANDIDATE])
        order = [BASELINE, CANDIDATE, CANDIDATE, BASELINE]
        if secrets.randbelow(2):
            order = [CANDIDATE, BASELINE, BASELINE, CANDIDATE]
        order.insert(secrets.randbelow(5), BASELINE_AGAIN)
        for name in order:
            _visit(sides[name], protocol, check, timed, telemetry, (restart, block, name), is_cold=True)
        if is_remote and block % 4 == 0:
            for name in (BASELINE, CANDIDATE):
                _visit(sides[name], protocol, check, timed, telemetry, (restart, block, name), is_cold=False)


def _visit(
    side: Side,
    protocol: Protocol,
    check: Checker,
    timed: Timed,
    telemetry: Telemetry,
    place: tuple[int, int, str],
    *,
    is_cold: bool,
) -> None:
    assert side.pool is not None
    before = telemetry.read()
    plan = draw_plan(side.pool, protocol.calls_per_visit)
    calls = side.calls(plan, is_cold=is_cold)
    for planned, call in zip(plan, calls, strict=True):
        if call.parts is not None:
            check(side, planned, call)
            timed.num_checked += 1
    kept = [c for c, p in zip(calls, plan, strict=True) if not p.is_sealed]
    restart, block, name = place
    timed.samples.append(
        Samples(
            restart=restart,
            block=block,
            side=name,
            is_cold=is_cold,
            claim_ns=[c.claim_ns for c in kept],
            device_ns=[c.device_ns for c in kept],
            settle_ns=[c.settle_ns for c in kept if c.parts is not None],
            enqueue_ns=[c.enqueue_ns for c in kept],
            clocks=before,
        )
    )


def _check_quiet(side: Side) -> None:
    """A worker that nothing is asked of does nothing. Errors: Rejection CHEATING."""
    before = side.worker.cpu_seconds()
    time.sleep(_QUIET_SECONDS)
    used = side.worker.cpu_seconds() - before
    if used > 0.2 * _QUIET_SECONDS:
        raise Rejection(
            Verdict.CHEATING,
            f"Work between calls: the worker computed for {used * 1e3:.0f} of {_QUIET_SECONDS * 1e3:.0f} ms in which "
            "nothing was asked of it.",
        )


def draw_plan(pool: Pool, count: int) -> list[PlannedCall]:
    """Calls on random cases with fresh values, some but for a few elements those of the call before; a secret
    share is fetched, and half of that is sealed as well.

    At least one call of a plan is not sealed, so that it can be timed.
    """
    generator = torch.Generator().manual_seed(secrets.randbits(62))
    plan: list[PlannedCall] = []
    for index in range(count):
        is_fetched = secrets.randbelow(1000) < 1000 * FETCH_SHARE
        is_sealed = is_fetched and index > 0 and secrets.randbelow(2) == 0
        entry, variation = secrets.randbelow(pool.num_cases), draw_variation(generator)
        if plan and secrets.randbelow(3) == 0:
            entry, before = plan[-1].index, plan[-1].variation
            assert before is not None
            variation, is_fetched = touch(before, pool.num_varied, generator), True
        is_echoed = pool.is_small or secrets.randbelow(4) == 0
        plan.append(PlannedCall(entry, variation, is_fetched, is_sealed, is_echoed))
    return plan


def _calibrate_hold(sides: dict[str, Side], protocol: Protocol, check: Checker) -> None:
    """Hold the stream 2.5 times as long as the slower side takes to enqueue a call, at most 4 ms."""
    enqueue = 0.0
    for side in sides.values():
        assert side.pool is not None
        for _ in range(2):
            calls = side.calls(draw_plan(side.pool, protocol.calls_per_visit))
        enqueue = max(enqueue, median(c.enqueue_ns for c in calls))
    cycles = int(min(4e6, max(5e4, 2.5 * enqueue)) * 1.98)
    for side in sides.values():
        side.hold_cycles = cycles


def check_clocks(timed: Timed, *, is_remote: bool) -> None:
    """The times must be all that was spent: what came after DONE, and on a GPU what the events did not see,
    may not exceed the baseline's by more than noise.

    Errors: Rejection CHEATING with the figures.
    """
    settled = [n for s in timed.samples if s.side == BASELINE for n in s.settle_ns]
    allowance = _allowance_ns(timed, 100e3, "device" if is_remote else "claim")
    _check_excess(
        "the answer came {excess:.0f} us later after the call had claimed to be done than the baseline's",
        settled,
        [n for s in timed.samples if s.side == CANDIDATE for n in s.settle_ns],
        allowance if is_remote else min(allowance, _spread_ns(settled)),
    )
    if is_remote:
        _check_excess(
            "the judge's clock saw {excess:.0f} us more than the device events reported, beyond the baseline's",
            [n for s in timed.samples if s.side == BASELINE for n in _hidden(s)],
            [n for s in timed.samples if s.side == CANDIDATE for n in _hidden(s)],
            _allowance_ns(timed, 40e3, "device"),
        )


def _hidden(sample: Samples) -> list[int]:
    return [claim - device for claim, device in zip(sample.claim_ns, sample.device_ns, strict=True)]


def _allowance_ns(timed: Timed, least: float, clock: str) -> float:
    baseline = timed.median_us(BASELINE, clock) or 0.0
    return max(least, 0.25 * baseline * 1e3)


def _spread_ns(settled: Sequence[float]) -> float:
    """How far the baseline's own answers stray: four times what its slower tenth exceeds its median by."""
    if not settled:
        return 0.0
    middle = median(settled)
    return max(30e3, 0.25 * middle, 4 * (percentile(settled, 0.9) - middle))


def _check_excess(text: str, baseline: Sequence[float], candidate: Sequence[float], allowance_ns: float) -> None:
    """Work that is never paid for delays every answer, noise only some: the candidate's promptest tenth is held
    against the baseline's median."""
    if len(baseline) < _LEAST_SAMPLES or len(candidate) < _LEAST_SAMPLES:
        return
    excess = percentile(candidate, 0.1) - median(baseline)
    if excess > allowance_ns:
        allowance = f"allowance {allowance_ns / 1e3:.0f} us"
        raise Rejection(Verdict.CHEATING, f"Unpaid work: {text.format(excess=excess / 1e3)} ({allowance}).")
