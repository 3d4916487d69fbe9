"""The figures of one timed case, from its raw visits."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from fastkernels.capture.case import Case
from fastkernels.harness.ceilings import Ceilings
from fastkernels.harness.groups import Group, case_cost
from fastkernels.harness.records import TimingRecord
from fastkernels.harness.timing import BASELINE, BASELINE_AGAIN, CANDIDATE, Timed
from fastkernels.scoring.statistics import noise_floor, ratio_interval, speed_verdict


def timing_record(
    group: Group, case: Case, timed: Timed, graph_us: Mapping[str, float], ceilings: Ceilings
) -> TimingRecord:
    """Ratio, interval, noise floor and shares of the roofline; graph_us: by side, empty without a GPU."""
    is_remote = ceilings.device.startswith("cuda")
    clock = "device" if is_remote else "claim"
    interval = ratio_interval(timed.pairs(BASELINE, CANDIDATE, clock))
    identical = ratio_interval(timed.pairs(BASELINE, BASELINE_AGAIN, clock))
    floor = noise_floor(identical, ceilings.least_noise)
    baseline_us = timed.median_us(BASELINE, clock) or 0.0
    candidate_us = timed.median_us(CANDIDATE, clock) or 0.0
    cost = case_cost(group, case)
    ideal_us = ceilings.ideal_us(cost.num_bytes, cost.num_flops, case.dtype)
    enqueue = [n for s in timed.samples if s.side == CANDIDATE for n in s.enqueue_ns]
    return TimingRecord(
        case=f"{case.family} {case.shapes()}",
        phase=case.phase.value if case.phase else "",
        dtype=str(case.dtype).removeprefix("torch."),
        shapes=case.shapes(),
        clock="device events" if is_remote else "judge",
        ratio=interval.ratio,
        low=interval.low,
        high=interval.high,
        num_pairs=interval.num_pairs,
        noise_floor=floor,
        speed=speed_verdict(interval, floor),
        baseline_us=baseline_us,
        candidate_us=candidate_us,
        warm_baseline_us=timed.median_us(BASELINE, clock, is_cold=False),
        warm_candidate_us=timed.median_us(CANDIDATE, clock, is_cold=False),
        graph_baseline_us=graph_us.get(BASELINE),
        graph_candidate_us=graph_us.get(CANDIDATE),
        num_bytes=cost.num_bytes,
        num_flops=cost.num_flops,
        floor_us=ceilings.floor_us(cost.num_bytes, cost.num_flops, case.dtype),
        baseline_roofline_share=ideal_us / baseline_us if baseline_us else 0.0,
        candidate_roofline_share=ideal_us / candidate_us if candidate_us else 0.0,
        is_launch_bound=bool(enqueue) and median(enqueue) / 1e3 > candidate_us,
        num_checked=timed.num_checked,
        late_us=timed.late_ns / 1e3,
        init=case.init_text(),
        samples=[*timed.samples],
    )
