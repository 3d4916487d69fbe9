"""The figures of one timed case, from its raw visits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from statistics import median

from fastkernels.capture.case import Case
from fastkernels.harness.ceilings import Ceilings
from fastkernels.harness.groups import Group, case_cost
from fastkernels.harness.records import TimingRecord
from fastkernels.harness.timed_figures import CLOCKS, clock_of, timed_figures
from fastkernels.harness.timing import BASELINE, CANDIDATE, Timed


def timing_record(
    group: Group, case: Case, timed: Timed, graph_us: Mapping[str, float], ceilings: Ceilings
) -> TimingRecord:
    """Ratio, interval, noise floor and shares of the roofline; graph_us: by side, empty without a GPU."""
    figures = timed_figures(timed, ceilings.device, ceilings.least_noise)
    cost = case_cost(group, case)
    ideal_us = ceilings.ideal_us(cost.num_bytes, cost.num_flops, case.dtype)
    enqueue = [n for s in timed.samples if s.side == CANDIDATE for n in s.enqueue_ns]
    return TimingRecord(
        case=f"{case.family} {case.shapes()}",
        phase=case.phase.value if case.phase else "",
        dtype=str(case.dtype).removeprefix("torch."),
        shapes=case.shapes(),
        clock=CLOCKS[clock_of(ceilings.device)],
        graph_baseline_us=graph_us.get(BASELINE),
        graph_candidate_us=graph_us.get(CANDIDATE),
        num_bytes=cost.num_bytes,
        num_flops=cost.num_flops,
        floor_us=ceilings.floor_us(cost.num_bytes, cost.num_flops, case.dtype),
        baseline_roofline_share=ideal_us / figures.baseline_us if figures.baseline_us else 0.0,
        candidate_roofline_share=ideal_us / figures.candidate_us if figures.candidate_us else 0.0,
        is_launch_bound=bool(enqueue) and median(enqueue) / 1e3 > figures.candidate_us,
        num_checked=timed.num_checked,
        late_us=timed.late_ns / 1e3,
        init=case.init_text(),
        samples=[*timed.samples],
        **asdict(figures),
    )
