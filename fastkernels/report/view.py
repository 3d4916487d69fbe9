"""A run's data in the shape the report shows it. Pure: takes the dict of results.json, changes nothing in it."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastkernels.harness.verdict import Verdict
from fastkernels.scoring.statistics import geometric_mean

Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of the verdict table: a judgement, and one timed case of it when there is one.

    timing: None when the op did not pass, for then no time counts.
    """

    record: Json
    anchor: str
    timing: Json | None
    max_error: float | None

    @property
    def verdict(self) -> str:
        return self.record["verdict"]

    @property
    def is_passed(self) -> bool:
        return self.verdict == Verdict.PASSED

    @property
    def sentence(self) -> str:
        return sentence(self.verdict)

    @property
    def first_line(self) -> str:
        return headline(self.record["message"])


@dataclass(frozen=True)
class SetSummary:
    """What one implementation set came to. speedup: geometric mean over its timed cases."""

    name: str
    num_ops: int
    num_passed: int
    speeds: Counter[str]
    speedup: float | None


@dataclass(frozen=True)
class ErrorGroup:
    """The worst of all calls of one family, dtype and shape. row_share, bias_share: of what was allowed."""

    family: str
    phase: str
    dtype: str
    shapes: str
    verdict: str
    num_calls: int
    row_share: float | None
    bias_share: float | None
    max_abs: float | None
    message: str


@dataclass(frozen=True)
class Null:
    """One cell of the null matrix: the worst outcome of any judgement of the op."""

    outcome: str
    reason: str


@dataclass(frozen=True)
class NullMatrix:
    """rows: (op, dtype, cells in the order of nulls)."""

    nulls: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Null]]]

    @property
    def num_passed(self) -> int:
        return sum(cell.outcome == "passed" for _, _, cells in self.rows for cell in cells)


@dataclass
class View:
    """A whole run."""

    results: Json
    rows: list[Row] = field(default_factory=list)
    anchors: list[tuple[str, Json]] = field(default_factory=list)

    @property
    def timed(self) -> list[Row]:
        return [row for row in self.rows if row.timing is not None]

    @property
    def num_passed(self) -> int:
        return sum(r["verdict"] == Verdict.PASSED for r in self.results["ops"])

    @property
    def num_failed(self) -> int:
        return len(self.results["ops"]) - self.num_passed

    @property
    def speeds(self) -> Counter[str]:
        return Counter(row.timing["speed"] for row in self.timed if row.timing)


def view_of(results: Json) -> View:
    view, taken = View(results), set[str]()
    for record in results["ops"]:
        anchor = _anchor(record, taken)
        view.anchors.append((anchor, record))
        error = max_error(record)
        timings = record["timings"] if record["verdict"] == Verdict.PASSED else []
        view.rows += [Row(record, anchor, timing, error) for timing in timings or [None]]
    return view


def _anchor(record: Json, taken: set[str]) -> str:
    """`op-set`, fit for a link; numbered when two sets differ only in characters a link lacks."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{record['op']}-{record['implementation']}")
    anchor, number = stem, 1
    while anchor in taken:
        number += 1
        anchor = f"{stem}-{number}"
    taken.add(anchor)
    return anchor


def sentence(verdict: str) -> str:
    try:
        return Verdict(verdict).sentence
    except ValueError:
        return "A verdict that this version of FastKernels does not know."


def headline(message: str) -> str:
    """Of a traceback the last line, of anything else the first."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if not lines:
        return ""
    return lines[-1] if is_traceback(message) else lines[0]


def is_traceback(message: str) -> bool:
    """Whether Python's own text is in it; that of a file which does not parse begins with no "Traceback"."""
    lines = message.strip().splitlines()[:2]
    return any("Traceback (most recent call last)" in line or line.endswith("does not import.") for line in lines)


def max_error(record: Json) -> float | None:
    """Largest |error| of any call that was answered in form; infinite when one is no number."""
    return _worst(case["error"].get("max_abs") for case in record["cases"])


def set_summaries(view: View) -> list[SetSummary]:
    summaries = []
    for name in sorted({r["implementation"] for r in view.results["ops"]}):
        records = [r for r in view.results["ops"] if r["implementation"] == name]
        timings = [row.timing for row in view.timed if row.timing and row.record["implementation"] == name]
        ratios = [t["ratio"] for t in timings if t["ratio"] > 0]
        summaries.append(
            SetSummary(
                name=name,
                num_ops=len(records),
                num_passed=sum(r["verdict"] == Verdict.PASSED for r in records),
                speeds=Counter(t["speed"] for t in timings),
                speedup=geometric_mean(ratios) if ratios else None,
            )
        )
    return summaries


def error_groups(record: Json) -> list[ErrorGroup]:
    """Calls of one family, dtype and shape as one, worst first."""
    groups: dict[tuple[str, str, str, str], list[Json]] = {}
    for case in record["cases"]:
        groups.setdefault((case["family"], case["phase"], case["dtype"], case["shapes"]), []).append(case)
    found = [_error_group(key, cases) for key, cases in groups.items()]
    return sorted(found, key=lambda g: (g.verdict == Verdict.PASSED, -(g.row_share or 0.0)))


def _error_group(key: tuple[str, str, str, str], cases: Sequence[Json]) -> ErrorGroup:
    failed = next((c for c in cases if c["verdict"] != Verdict.PASSED), None)
    return ErrorGroup(
        *key,
        verdict=failed["verdict"] if failed else cases[0]["verdict"],
        num_calls=len(cases),
        row_share=_worst(error_share(c, "row") for c in cases),
        bias_share=_worst(error_share(c, "bias") for c in cases),
        max_abs=_worst(c["error"].get("max_abs") for c in cases),
        message=failed["message"] if failed else "",
    )


def _worst(values: Iterable[float | None]) -> float | None:
    """Not a number is as bad as infinity: max() over it depends on the order."""
    known = [v if math.isfinite(v) else math.inf for v in values if v is not None]
    return max(known) if known else None


def error_share(case: Json, kind: str) -> float | None:
    """Error over what was allowed, as the judge found it; None without one (exact and sampled answers have none)."""
    share = case["share"].get(kind)
    return share if share and math.isfinite(share) else None


def null_matrix(results: Json) -> NullMatrix:
    nulls: dict[str, None] = {}
    cells: dict[tuple[str, str], dict[str, Null]] = {}
    for record in results["ops"]:
        for null in record["nulls"]:
            nulls.setdefault(null["null"])
            row = cells.setdefault((record["op"], null["dtype"]), {})
            if null["null"] not in row or _RANK[null["outcome"]] > _RANK[row[null["null"]].outcome]:
                row[null["null"]] = Null(null["outcome"], null["reason"])
    missing = Null("not tried", "")
    return NullMatrix(
        list(nulls), [(op, dtype, [row.get(n, missing) for n in nulls]) for (op, dtype), row in cells.items()]
    )


_RANK = {"not applicable": 0, "rejected": 1, "passed": 2}


def taxonomy(view: View) -> list[tuple[str, str, list[tuple[str, Json]]]]:
    """(verdict, its sentence, who got it), failures first, the most frequent first."""
    found: dict[str, list[tuple[str, Json]]] = {}
    for anchor, record in view.anchors:
        found.setdefault(record["verdict"], []).append((anchor, record))
    ordered = sorted(found.items(), key=lambda item: (item[0] == Verdict.PASSED, -len(item[1])))
    return [(verdict, sentence(verdict), who) for verdict, who in ordered]


def samples_us(timing: Json, side: str) -> list[float]:
    """Every raw sample of a side in the clock that counted: cold calls, warm-up left out."""
    key = "device_ns" if timing["clock"] == "device events" else "claim_ns"
    chosen = (s for s in timing["samples"] if s["side"] == side and s["is_cold"] and s["block"] >= 0)
    return [nanoseconds / 1e3 for sample in chosen for nanoseconds in sample[key]]


_POSITIONAL = ("scenarios",)


def command(results: Json) -> str:
    """The command that makes this run again."""
    request = dict(results["request"])
    words = ["fastkernels", results["kind"], *(str(request.pop(name)) for name in _POSITIONAL if request.get(name))]
    for key, value in request.items():
        option = "--" + key.replace("_", "-")
        if value is True:
            words.append(option)
        elif isinstance(value, list):
            words += [word for item in value for word in (option, str(item))]
        elif value is not None and value is not False:
            words += [option, str(value)]
    return shlex.join(words)
