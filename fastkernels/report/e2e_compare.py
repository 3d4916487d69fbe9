"""Two end-to-end runs beside each other: which figures moved by more than their repeats are apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from fastkernels.errors import UsageError
from fastkernels.report.compare import differences, hardware_warning
from fastkernels.report.e2e_columns import latency_names, throughput_columns

Json = dict[str, Any]

_PERCENTILES = ("p50", "p99")
_LEAST_CHANGE = 0.01
"""Under which repeats that happen to agree to a hair are no news."""
_SAME_WORK = ("name", "kind", "num_requests", "num_prompt_tokens", "num_output_tokens", "seed")
"""Of a workload: where one of these differs, other work was done."""
_NOT_SETTINGS = ("model", "workload", "num_requests", "scale", "seed", "repeats", "quick")
"""Of what was asked for: work, which is compared by itself, and how often it was measured."""


@dataclass(frozen=True)
class FigureChange:
    """A figure of one side in both runs: medians of repeats, and the least and the largest of them.

    change: "better", "worse", "same" (the repeats of the runs overlap, or the medians are within 1 %), "not comparable"
    (a run has one repeat, or no such figure), "new" or "gone" (a side that one run has). ratio: how many times better,
    None without both figures.
    """

    side: str
    figure: str
    is_better_high: bool
    change: str
    before: float | None = None
    after: float | None = None
    before_span: tuple[float, float] | None = None
    after_span: tuple[float, float] | None = None
    ratio: float | None = None

    @property
    def is_changed(self) -> bool:
        return self.change not in ("same", "not comparable")


@dataclass(frozen=True)
class E2EComparison:
    """equal_outputs: for each side of both runs, whether their first repeats gave the same digest."""

    before: Json
    after: Json
    changes: list[FigureChange]
    equal_outputs: dict[str, bool]
    warnings: list[str]

    def to_json(self) -> Json:
        return {
            "before": self.before["run_id"],
            "after": self.after["run_id"],
            "warnings": self.warnings,
            "equal_outputs": self.equal_outputs,
            "changes": [asdict(change) for change in self.changes],
        }


def compare_e2e(before: Json, after: Json, *, is_forced: bool = False) -> E2EComparison:
    """Errors: UsageError when the runs did other work, unless is_forced; then it is among the warnings."""
    other = _other_work(before, after)
    if other and not is_forced:
        raise UsageError(f"The runs did other work: {' '.join(other)} --force compares them all the same.")
    warnings = [*other, *hardware_warning(before, after), *differences(before, after), *_settings(before, after)]
    old, new = ({side["name"]: side for side in run.get("sides", [])} for run in (before, after))
    changes: list[FigureChange] = []
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in old or name not in new:
            changes.append(FigureChange(name, "", True, "gone" if name in old else "new"))
            continue
        changes += (c for c in _changes(after, old[name], new[name]) if c.before is not None or c.after is not None)
    digests = {name: [_digest(sides[name]) for sides in (old, new)] for name in old if name in new}
    equal = {name: one == other for name, (one, other) in digests.items() if one and other}
    return E2EComparison(before, after, changes, equal, warnings)


def _other_work(before: Json, after: Json) -> list[str]:
    """What of model, workload and way differs, each in a sentence."""
    old, new = (run.get("workload") or {} for run in (before, after))
    pairs = {
        "model": (before["request"].get("model"), after["request"].get("model")),
        "mode": (before.get("mode"), after.get("mode")),
        **{f"workload's {key}": (old.get(key), new.get(key)) for key in _SAME_WORK},
    }
    return [f"The {name} was {a} and is {b}." for name, (a, b) in pairs.items() if a != b]


def _settings(before: Json, after: Json) -> list[str]:
    old, new = before["request"], after["request"]
    names = sorted({*old, *new} - {*_NOT_SETTINGS})
    return [f"{name} was {old.get(name)} and is {new.get(name)}." for name in names if old.get(name) != new.get(name)]


def _digest(side: Json) -> str | None:
    return side["repeats"][0].get("digest") if side["repeats"] else None


def _changes(run: Json, old: Json, new: Json) -> Iterator[FigureChange]:
    """run: that says which figures there are."""
    for column in throughput_columns(run):
        yield _change(new["name"], column.title, True, *(_of_repeats(s, column.key) for s in (old, new)))
    yield _change(new["name"], "Seconds", False, *(_of_repeats(s, "duration_s") for s in (old, new)))
    for key, name in latency_names(run).items():
        for part in _PERCENTILES:
            values = (_of_repeats(side, key, part) for side in (old, new))
            yield _change(new["name"], f"{name} {part}, ms", False, *values)
    yield _change(new["name"], "Start-up s", False, *([s["startup_seconds"] or 0.0] for s in (old, new)))
    yield _change(
        new["name"],
        "Peak GB",
        False,
        *([(r.get("peak_memory_bytes") or 0) / 1e9 for r in s["repeats"]] for s in (old, new)),
    )


def _of_repeats(side: Json, key: str, part: str | None = None) -> list[float]:
    """A figure of each repeat that was answered."""
    found = [r["summary"].get(key) for r in side["repeats"]]
    return [value[part] if part else value for value in found if value]


def _change(side: str, figure: str, is_better_high: bool, old: list[float], new: list[float]) -> FigureChange:
    old, new = ([value for value in values if value] for values in (old, new))  # 0 is what was not told
    before, after = (median(values) if values else None for values in (old, new))
    spans = [(min(values), max(values)) if values else None for values in (old, new)]
    ratio = None
    if before and after:
        ratio = after / before if is_better_high else before / after
    change = "not comparable"
    if ratio and min(len(old), len(new)) > 1:
        is_apart = min(new) > max(old) or max(new) < min(old)
        is_large = abs(ratio - 1) >= _LEAST_CHANGE
        change = ("better" if ratio > 1 else "worse") if is_apart and is_large else "same"
    return FigureChange(side, figure, is_better_high, change, before, after, spans[0], spans[1], ratio)
