"""Times Mamba-2's chunk scan by plans of its stages beside the scan in sequence: the source of ScanPlan's defaults.

    python benchmarks/tune_chunk_scan.py --out times.json
    TRITON_INTERPRET=1 python benchmarks/tune_chunk_scan.py --rehearse

Of Mamba-Codestral's sizes in bf16, whole and as one of 8 ranks holds them. Every answer and every state is held against
the definition in float32; `error` is the larger of the two norms of the difference, relative. After --seconds no plan
is tried any more. Under the interpreter sizes are tiny, products exact, and times those of the interpreter.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import kernel_timing as timing
import torch
from torch import Tensor

from fastkernels.kernels import mamba_chunk_scan as kernels
from fastkernels.kernels.mamba_chunk_scan import mamba_chunk_scan
from fastkernels.kernels.mamba_chunk_scan_stages import ScanPlan, scan_in_stages, scan_plan
from fastkernels.tasks.baseline.L1.mamba_chunk_scan import chunked_scan, discretize
from fastkernels.tasks.baseline.state_slots import decay_parameters

LIMIT = (0.0, float("inf"))
MOST_ERROR = 0.01
IN_SEQUENCE = "in sequence"
NAMES = ("chunk", "most_heads", "state_cols", "states_warps", "states_stages", "outputs_warps", "outputs_stages")


@dataclass(frozen=True)
class Case:
    num_seqs: int
    num_tokens: int
    num_heads: int
    num_groups: int
    head_dim: int = 64
    state_size: int = 128

    def __str__(self) -> str:
        return f"{self.num_seqs} x {self.num_tokens}, {self.num_heads} heads"

    @property
    def num_rows(self) -> int:
        return self.num_seqs * self.num_tokens


@dataclass
class Result:
    """microseconds: None where the plan failed; by_kernel: of one call, as the profiler has them."""

    case: str
    plan: str
    microseconds: float | None
    error: float | None
    problem: str = ""
    by_kernel: dict[str, float] | None = None


WHOLE = Case(4, 2048, 128, 8)
OTHERS = [Case(1, 8192, 128, 8), Case(1, 512, 128, 8), Case(1, 128, 128, 8), Case(16, 256, 128, 8)]
OF_A_RANK = [Case(1, 4096, 16, 1), Case(4, 1024, 16, 1)]
BASE = ScanPlan()
SMALL = ScanPlan(chunk=64, outputs_warps=4)
PLANS = [
    BASE,
    SMALL,
    BASE._replace(is_passed=True),
    BASE._replace(outputs_stages=2),
    BASE._replace(most_heads=8),
    BASE._replace(states_stages=2),
    BASE._replace(state_cols=128, states_warps=8, states_stages=2),
    SMALL._replace(outputs_stages=2),
    SMALL._replace(outputs_stages=2, most_heads=8),
    BASE._replace(states_warps=8),
    BASE._replace(state_cols=128, states_warps=4),
    SMALL._replace(is_passed=True),
    BASE._replace(most_heads=4),
    BASE._replace(outputs_stages=4),
]
FEW = [BASE, BASE._replace(is_passed=True), SMALL]


class Given:
    """One case's arguments, drawn on a device, and the definition's answer."""

    def __init__(self, case: Case, device: str, dtype: torch.dtype, seed: int = 0) -> None:
        make = torch.Generator(device).manual_seed(seed)

        def randn(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(shape, generator=make, device=device, dtype=dtype)

        widths = [case.num_heads * case.head_dim] + [case.num_groups * case.state_size] * 2
        x, b, c = randn(case.num_rows, sum(widths)).split(widths, dim=-1)
        drawn = decay_parameters(case.num_heads, torch.Generator().manual_seed(seed))
        groups = (case.num_groups, case.state_size)
        starts = torch.arange(case.num_seqs + 1, device=device, dtype=torch.int32) * case.num_tokens
        slots = torch.arange(case.num_seqs, device=device, dtype=torch.int32)
        self.arguments = [
            x.unflatten(-1, (case.num_heads, case.head_dim)),
            randn(case.num_rows, case.num_heads),
            drawn["A_log"].to(device),
            b.unflatten(-1, groups),
            c.unflatten(-1, groups),
            torch.ones(case.num_heads, device=device),
            drawn["dt_bias"].to(device),
        ]
        self.states = randn(case.num_seqs, case.num_heads, case.head_dim, case.state_size, dtype=torch.float32)
        self.spent = self.states.clone()  # by timed calls
        self.places = [starts, slots, slots % 2 == 0]
        self.is_exact = dtype == torch.float32

    def call(self, plan: ScanPlan | None, states: Tensor) -> Tensor:
        if plan is not None:
            return scan_in_stages(plan, *self.arguments, states, *self.places, LIMIT, is_exact=self.is_exact)
        with mock.patch.object(kernels, "scan_plan", return_value=None):
            return mamba_chunk_scan(*self.arguments, states, *self.places, LIMIT)

    def definition(self) -> tuple[Tensor, Tensor]:
        x, dt, a_log, b, c, d, dt_bias = self.arguments
        step, decay = discretize(dt, a_log, dt_bias, LIMIT, torch.float32)
        starts, slots, holds = (t.tolist() for t in self.places)
        y, states = torch.empty_like(x, dtype=torch.float32), self.states.clone()
        for (start, end), slot, has_state in zip(pairwise(starts), slots, holds, strict=True):
            some, state = slice(start, end), states[slot] * float(has_state)
            y[some] = chunked_scan(x[some].float(), step[some], decay[some], b[some], c[some], d, state)
            states[slot] = state
        return y, states

    def error(self, plan: ScanPlan | None, wanted: tuple[Tensor, Tensor]) -> float:
        states = self.states.clone()
        got = (self.call(plan, states), states)
        return max(float((g.float() - w).norm() / w.norm()) for g, w in zip(got, wanted, strict=True))


def measured(given: list[Given], plan: ScanPlan | None, is_rehearsal: bool) -> float:
    """Microseconds of one call."""
    calls: list[Callable[[], object]] = [lambda g=g: g.call(plan, g.spent) for g in given]  # type: ignore[misc]
    if not is_rehearsal:
        return timing.graph_microseconds(calls, 15.0)
    started = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - started) * 1e6 / len(calls)


def by_kernel(given: Given, plan: ScanPlan) -> dict[str, float]:
    """Microseconds of each of the stages' kernels, a mean of some calls."""
    from torch.profiler import ProfilerActivity, profile

    given.call(plan, given.spent)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(5):
            given.call(plan, given.spent)
        torch.cuda.synchronize()
    events = [e for e in found.key_averages() if e.key.endswith("_kernel")]
    return {e.key: round(e.device_time_total / 5, 1) for e in events}


def name_of(plan: ScanPlan | None) -> str:
    if plan is None:
        return IN_SEQUENCE
    told = [f"{name} {getattr(plan, name)}" for name in NAMES if getattr(plan, name) != getattr(BASE, name)]
    return ", ".join([*(["passed"] if plan.is_passed else []), *told]) or "default"


def try_case(case: Case, plans: list[ScanPlan], is_rehearsal: bool, deadline: float) -> list[Result]:
    device, dtype = ("cpu", torch.float32) if is_rehearsal else ("cuda", torch.bfloat16)
    num_bytes = 4 * case.num_rows * case.num_heads * case.head_dim
    num_sets = 1 if is_rehearsal else timing.num_sets(num_bytes)
    given = [Given(case, device, dtype, seed) for seed in range(num_sets)]
    wanted = given[0].definition()
    results = []
    for plan in [None, *plans]:
        if time.monotonic() > deadline:
            break
        result = Result(str(case), name_of(plan), None, None)
        results.append(result)
        try:
            result.error = given[0].error(plan, wanted)
            result.microseconds = measured(given, plan, is_rehearsal)
            if plan in FEW and not is_rehearsal:
                result.by_kernel = by_kernel(given[0], plan)
        except Exception as error:
            result.problem = f"{type(error).__name__} {str(error)[:120]}"
            if not is_rehearsal:
                torch.cuda.synchronize()
        print(result, flush=True)
    chosen = scan_plan(case.num_rows, case.num_seqs, case.num_heads, case.head_dim, case.state_size)
    print(f"{case}: the op chooses {name_of(chosen)}", flush=True)
    if not is_rehearsal:
        torch.cuda.empty_cache()
    return results


def print_table(results: list[Result]) -> None:
    for case in dict.fromkeys(result.case for result in results):
        rows = [result for result in results if result.case == case]
        ranked = sorted(rows, key=lambda r: r.microseconds if r.microseconds is not None else float("inf"))
        print(case)
        for row in ranked:
            taken = "failed" if row.microseconds is None else f"{row.microseconds:9.1f} us"
            is_wrong = row.error is not None and not row.error <= MOST_ERROR
            told = row.problem or ("WRONG" if is_wrong else "")
            error = "" if row.error is None else f"{row.error:.1e}"
            print(f"  {taken:>12s}  {error:8s} {row.plan} {told}".rstrip())
            if row.by_kernel:
                print(f"{'':24s}" + ", ".join(f"{name} {took}" for name, took in row.by_kernel.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a .json file")
    parser.add_argument("--seconds", type=float, default=75.0)
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    sweeps = [(WHOLE, PLANS[:3])]
    sweeps += [(case, FEW) for case in (*OTHERS, *OF_A_RANK)]
    sweeps += [(WHOLE, PLANS[3:])]
    if arguments.rehearse:
        tiny = ScanPlan(32, 2, 16)
        sweeps = [(Case(2, 40, 4, 2, 16, 32), [tiny, tiny._replace(is_passed=True)])]
    results: list[Result] = []
    for case, plans in sweeps:
        results += try_case(case, plans, arguments.rehearse, deadline)
    if arguments.out:
        told: dict[str, Any] = {} if arguments.rehearse else timing.environment()
        record = {"environment": told, "default": BASE._asdict(), "results": [asdict(result) for result in results]}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print_table(results)
    return 1 if any(r.problem or r.error is None or not r.error <= MOST_ERROR for r in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
