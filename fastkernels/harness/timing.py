"""Speed of a candidate beside the baseline: interleaved, on inputs that change, answers checked.

Each restart has fresh processes: the baseline, the baseline again (for the noise floor) and the
candidate. A block visits them in a random ABBA or BAAB order; a visit is a few calls (visit_ns).
The ratio is taken per pair of neighbouring visits.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastkernels.harness.cores import own_cores
from fastkernels.harness.plans import draw_plan
from fastkernels.harness.pool import PlannedCall
from fastkernels.harness.side import Call, Side
from fastkernels.harness.telemetry import Telemetry
from fastkernels.harness.verdict import Rejection, Verdict
from fastkernels.harness.visits import BASELINE, BASELINE_AGAIN, CANDIDATE, Timed, Visit, visit_ns

__all__ = [
    "BASELINE",
    "BASELINE_AGAIN",
    "CANDIDATE",
    "Protocol",
    "Timed",
    "Visit",
    "run_restart",
    "visit_ns",
]

WARM_UP_VISITS = 2
VISIT_NS = 5_000_000
_QUIET_SECONDS = 0.1


@dataclass(frozen=True)
class Protocol:
    """How much is measured; fixed before anything is seen."""

    num_restarts: int = 3
    num_blocks: int = 20
    calls_per_visit: int = 4

    @classmethod
    def quick(cls) -> Protocol:
        return cls(num_restarts=1, num_blocks=12, calls_per_visit=3)


Checker = Callable[[Side, PlannedCall, Call], None]


def run_restart(
    restart: int, sides: dict[str, Side], protocol: Protocol, check: Checker, timed: Timed, *, is_remote: bool
) -> None:
    """One restart's visits, appended to `timed`.

    Errors: Rejection from a candidate's call or a failed check; UNTESTABLE when it is the baseline's.
    """
    with contextlib.nullcontext() if is_remote else own_cores([side.worker for side in sides.values()]):
        _run_blocks(restart, sides, protocol, check, timed, is_remote=is_remote)


def _run_blocks(
    restart: int, sides: dict[str, Side], protocol: Protocol, check: Checker, timed: Timed, *, is_remote: bool
) -> None:
    pool, num_calls = sides[CANDIDATE].pool, protocol.calls_per_visit
    assert pool is not None
    telemetry = Telemetry(pool.device)
    for name, side in sides.items():
        for _ in range(WARM_UP_VISITS):
            _visit(side, num_calls, check, timed, telemetry, (restart, -1, name), is_cold=True)
    if not is_remote:
        num_calls = _calls_per_visit(protocol, timed)
    quiet_block = secrets.randbelow(protocol.num_blocks)
    for block in range(protocol.num_blocks):
        if block == quiet_block:
            _check_quiet(sides[CANDIDATE])
        order = [BASELINE, CANDIDATE, CANDIDATE, BASELINE]
        if secrets.randbelow(2):
            order = [CANDIDATE, BASELINE, BASELINE, CANDIDATE]
        order.insert(secrets.randbelow(5), BASELINE_AGAIN)
        for name in order:
            _visit(sides[name], num_calls, check, timed, telemetry, (restart, block, name), is_cold=True)
        if is_remote and block % 4 == 0:
            for name in (BASELINE, CANDIDATE):
                _visit(sides[name], num_calls, check, timed, telemetry, (restart, block, name), is_cold=False)


def _calls_per_visit(protocol: Protocol, timed: Timed) -> int:
    """By the judge's clock the least of a visit counts, and short calls are cheap: up to four times as many."""
    least = min((n for s in timed.samples if s.side == BASELINE for n in s.claim_ns), default=VISIT_NS)
    return max(protocol.calls_per_visit, min(4 * protocol.calls_per_visit, VISIT_NS // least))


def _visit(
    side: Side,
    num_calls: int,
    check: Checker,
    timed: Timed,
    telemetry: Telemetry,
    place: tuple[int, int, str],
    *,
    is_cold: bool,
) -> None:
    assert side.pool is not None
    before = telemetry.read()
    plan = draw_plan(side.pool, num_calls)
    with side.blame():
        calls = side.calls(plan, is_cold=is_cold)
        for planned, call in zip(plan, calls, strict=True):
            if call.parts is not None:
                check(side, planned, call)
                timed.num_checked += 1
    kept = [c for c, p in zip(calls, plan, strict=True) if not p.is_sealed]
    restart, block, name = place
    timed.samples.append(
        Visit(
            restart=restart,
            block=block,
            side=name,
            is_cold=is_cold,
            claim_ns=[c.claim_ns for c in kept],
            device_ns=[c.device_ns for c in kept],
            settle_ns=[c.settle_ns for c in kept if c.is_published],
            enqueue_ns=[c.enqueue_ns for c in kept],
            clocks=before,
            stage_ns=[c.stage_ns for c in kept],
            is_held=[c.is_held for c in kept],
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
