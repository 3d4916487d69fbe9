"""Whether a judgement says of itself what its own cases and samples say; one that does not is refused.

What follows from nothing else in a results.json (a sample, an error, a digest) is on trust.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastkernels.errors import RunFolderError
from fastkernels.harness.timed_figures import CLOCKS, LEAST_NOISE, clock_of, device_kind, timed_figures, timed_of
from fastkernels.harness.verdict import Verdict
from fastkernels.harness.visits import CANDIDATE

Json = dict[str, Any]

_ROUNDING = 1e-9
"""Relative: late_us is written in other units than it was measured in."""


def check_judgement(run: Path, record: Json, *, is_timed: bool) -> None:
    """is_timed: whether the run was to time what passed. Errors: RunFolderError."""
    wrong = _verdict_fault(record)
    if not wrong and record["verdict"] == Verdict.PASSED:
        wrong = _calls_fault(record, is_timed=is_timed)
        wrong = wrong or next((w for t in record["timings"] if (w := _timing_fault(record["device"], t))), "")
    if wrong:
        raise RunFolderError(f"{run}: {record['op']} {wrong}; altered, or damaged. Judge it again.")


def _verdict_fault(record: Json) -> str:
    """A judgement ends at the first call that is not right, with that call's verdict."""
    for case in record["cases"]:
        if case["verdict"] not in (Verdict.PASSED, record["verdict"]):
            return f"is {record['verdict']}, and {case['verdict']} in one of its cases ({case['case']})"
    return ""


def _calls_fault(record: Json, *, is_timed: bool) -> str:
    """Of a judgement that passed. Every call is one of a case or of a timed visit, those of suspected trials too."""
    cases, timings = record["cases"], record["timings"]
    if not cases or (is_timed and not timings):
        return f"passed, and has {len(cases)} cases that were checked and {len(timings)} that were timed"
    visits = [s for timing in (*timings, *record["suspected"]) for s in timing["samples"] if s["side"] == CANDIDATE]
    num_calls = len(cases) + sum(len(sample["claim_ns"]) for sample in visits)
    if num_calls != record["num_calls"]:
        return f"has num_calls {record['num_calls']}, and {num_calls} calls of cases and samples: some were left out"
    return ""


def _timing_fault(device: str, timing: Json) -> str:
    """Where a figure is not what the samples give."""
    place = f"({timing['shapes']})"
    if timing["clock"] != CLOCKS[clock_of(device)]:
        return f"was timed by {timing['clock']!r} {place}; the clock of {device} is {CLOCKS[clock_of(device)]!r}"
    try:
        figures = asdict(timed_figures(timed_of(timing), device, LEAST_NOISE[device_kind(device)]))
    except (ValueError, ArithmeticError, TypeError) as error:
        return f"has samples {place} that no figure can be reckoned from ({error})"
    for name, value in figures.items():
        if not _is_alike(timing[name], value):
            return f"has {name} {timing[name]} {place}, and {value} by its samples"
    return ""


def _is_alike(said: Any, reckoned: Any) -> bool:
    if isinstance(said, float) and isinstance(reckoned, float):
        return math.isclose(said, reckoned, rel_tol=_ROUNDING)
    return bool(said == reckoned)
