"""An eval run's data in the shape that its report, comparisons and leaderboard entries show it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from fastkernels.bench.eval.records import EVAL_SCHEMA_VERSION, ItemRecord, SetRecord
from fastkernels.errors import RunFolderError
from fastkernels.report.shapes import fault
from fastkernels.scoring.deployable import item_verdict
from fastkernels.scoring.items import Item, Outcome
from fastkernels.scoring.macroeval import is_valid, item_correctness, item_interval
from fastkernels.scoring.scores import items_of, scores, subset_items_of, subset_scores
from fastkernels.scoring.statistics import Interval

Json = dict[str, Any]

VALID, INACCURATE = "VALID", "INACCURATE"
SENTENCES = {
    VALID: "The whole model ran with the set, and its answers agree with the reference's within the noise.",
    INACCURATE: "The whole model ran with the set, and its answers are not within what the manifest allows.",
    Outcome.INVALID: "The model broke with the set: it crashed, hung, or gave answers of another form or not finite.",
    Outcome.NEVER_CALLED: "The set was installed and none of its ops ran in this model: it changes nothing.",
    Outcome.BLOCKED: "This machine could not run the scenario; it counts as not covered.",
}
_WORKED = ("REPLACED",)


class _Replacement(TypedDict):
    """Of one op on one rank; the rest of it is told as it comes."""

    op: Any
    status: Any
    num_calls: Any


@dataclass(frozen=True)
class Replaced:
    """One op of the set in one model, over all ranks. statuses: distinct ones. num_calls: the least of any rank."""

    op: str
    statuses: tuple[str, ...]
    num_calls: int
    num_ranks: int
    error: str

    @property
    def is_called(self) -> bool:
        return self.statuses == _WORKED


@dataclass(frozen=True)
class ItemView:
    """One scenario with one set. verdict: VALID, INACCURATE or the outcome; speed: WIN, LOSS, TIE, "" when not valid.

    speedup, throughput, latency: of blend 0.5, 1 and 0; None when not measured.
    """

    record: Json
    item: Item
    verdict: str
    correctness: float
    speed: str
    speedup: Interval | None
    throughput: Interval | None
    latency: Interval | None
    replaced: tuple[Replaced, ...]
    subset: ItemView | None

    @property
    def is_valid(self) -> bool:
        return self.verdict == VALID

    @property
    def sentence(self) -> str:
        return SENTENCES[self.verdict]

    @property
    def worst(self) -> float | None:
        """The largest discrepancy of any request."""
        return max(self.item.discrepancies, default=None)

    @property
    def called(self) -> list[Replaced]:
        return [r for r in self.replaced if r.is_called]


def check_eval(run: Path, results: Json) -> None:
    """Errors: RunFolderError when the run is of another version, lacks what a report relies on, or is inconsistent."""
    version = results.get("eval_schema_version")
    if results.get("items") and version != EVAL_SCHEMA_VERSION:
        raise RunFolderError(f"{run} has eval schema version {version}; this program reads {EVAL_SCHEMA_VERSION}.")
    for name, kind in (("sets", SetRecord), ("items", ItemRecord)):
        found = results.get(name, [])
        if not isinstance(found, list):
            raise RunFolderError(f"{run}: {name!r} is not a list; the results are damaged.")
        for number, record in enumerate(found):
            _check(run, f"{name}[{number}]", record, kind)
    for number, record in enumerate(results.get("items", [])):
        _check(run, f"items[{number}].replacements", record["replacements"], list[_Replacement])
        part = (record["subset"] or {}).get("item")
        if part is not None:
            _check(run, f"items[{number}].subset.item.replacements", part["replacements"], list[_Replacement])
    if not results.get("items"):
        return
    try:
        items_of(results), subset_items_of(results)
    except (ValueError, ArithmeticError, LookupError, TypeError) as error:
        raise RunFolderError(f"{run}: {error} The results are damaged.") from None


def _check(run: Path, where: str, record: object, kind: Any) -> None:
    if found := fault(record, kind, where):
        raise RunFolderError(f"{run}: {found}; the results are damaged.")


def item_views(results: Json) -> list[ItemView]:
    """Of every item, in the order of the run."""
    return [_view(results, record) for record in results.get("items", [])]


def _view(results: Json, record: Json) -> ItemView:
    item = items_of({**results, "items": [record]})[record["implementation"]][0]
    verdict = str(item.outcome)
    if item.outcome == Outcome.MEASURED:
        verdict = VALID if is_valid(item) else INACCURATE
    subset = (record["subset"] or {}).get("item")
    return ItemView(
        record=record,
        item=item,
        verdict=verdict,
        correctness=item_correctness(item),
        speed=item_verdict(item) or "",
        speedup=item_interval(item),
        throughput=item_interval(item, 1.0),
        latency=item_interval(item, 0.0),
        replaced=tuple(_replaced(record["replacements"])),
        subset=_view(results, subset) if subset else None,
    )


def _replaced(lines: Sequence[Json]) -> list[Replaced]:
    """What a candidate's process told: text that is shown, and numbers where they are some. An engine that tells of its
    replacements itself gives no error: there, one that failed ends the process."""
    found: dict[str, list[Json]] = {}
    for line in lines:
        found.setdefault(str(line["op"]), []).append(line)
    return [
        Replaced(
            op=op,
            statuses=tuple(sorted({str(line["status"]) for line in group})),
            num_calls=min(_count(line["num_calls"]) for line in group),
            num_ranks=len(group),
            error=next((str(line["error"]) for line in group if line.get("error")), ""),
        )
        for op, group in sorted(found.items())
    ]


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def set_scores(results: Json) -> dict[str, Json]:
    """scoring.scores of every set that has an item, reckoned from the items; what a run says of itself is not taken."""
    return {name: scores(items) for name, items in items_of(results).items()} if results.get("items") else {}


def part_scores(results: Json) -> dict[str, Json]:
    """The same of each set that broke a model, in the largest part that can be deployed."""
    return subset_scores(results) if results.get("items") else {}
