"""What entries are ranked by: the columns of a ranking, and an entry's scores as cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastkernels.report.figures import TIMES

Json = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """A column that can be ranked by. about: what it is, in a few words. has_interval: its figures come with one each,
    so that a rank is a range."""

    key: str
    title: str
    about: str
    has_interval: bool = False


EVAL_METRICS = (
    Metric(
        "deployable",
        "Deployable",
        "geometric mean over all items, with 1 for what is invalid or ties: what a user gains",
        has_interval=True,
    ),
    Metric("validity", "Valid", "items that ran and whose answers are right"),
    Metric("speedup", "S", "S macro: geometric mean over families of their valid items", has_interval=True),
    Metric("correctness", "C", "C macro: calibrated correctness, families alike"),
    Metric("coverage_macro", "Coverage", "macro coverage: valid items, families alike"),
    Metric("coverage", "Items", "item coverage: valid items of all"),
    Metric("score_0.0", "Score \u03bb 0", "S \u00d7 C \u00d7 coverage, latency alone"),
    Metric("score_0.5", "Score \u03bb \u00bd", "S \u00d7 C \u00d7 coverage, throughput and latency alike: the default"),
    Metric("score_1.0", "Score \u03bb 1", "S \u00d7 C \u00d7 coverage, throughput alone"),
    Metric("fast_1", "fast\u2081", "items whose whole interval is faster than the reference", has_interval=True),
)
KERNELS_METRICS = (
    Metric(
        "deployable",
        "Deployable",
        "geometric mean over all ops, with 1 for what did not pass or ties: what a user gains",
        has_interval=True,
    ),
    Metric("speedup", "S", "geometric mean over the ops that passed and were timed", has_interval=True),
    Metric("correctness", "C", "ops that passed, of those judged: UNTESTABLE is no judgement"),
    Metric("coverage_macro", "Coverage", "ops that passed, of all that there are"),
    Metric("fast_1", "fast\u2081", "ops whose whole interval is faster than the baseline, of all", has_interval=True),
    Metric("fast_1_5", "fast\u2081\u22c5\u2085", "the same, faster than 1.5 times the baseline", has_interval=True),
)


@dataclass(frozen=True)
class Cell:
    """value: what it is sorted by, None where there is nothing. low, high: its interval, None where it has none."""

    text: str = "\u2013"
    value: float | None = None
    small: str = ""
    low: float | None = None
    high: float | None = None


def eval_cells(scores: Json) -> dict[str, Cell]:
    deployable, main = scores["deployable"], scores["macroeval"]["0.5"]
    interval = scores["intervals"]["macro"]["hierarchical"]
    return {
        "deployable": speedup_cell(deployable),
        "validity": Cell(
            f"{deployable['num_valid']}/{deployable['num_items']}",
            deployable["validity"],
            f"{deployable['num_wins']} won, {deployable['num_losses']} lost",
        ),
        "speedup": speedup_cell({"speedup": main["speedup"], **(interval or {})}),
        "correctness": Cell(f"{main['correctness']:.3f}", main["correctness"]),
        "coverage_macro": share_cell(main["coverage_macro"]),
        "coverage": share_cell(main["coverage"]),
        **{
            f"score_{blend}": Cell(f"{values['score']:.3f}", values["score"])
            for blend, values in scores["macroeval"].items()
        },
        "fast_1": fast_cell(scores["fast_1"]),
    }


def kernels_cells(score: Json) -> dict[str, Cell]:
    return {
        "deployable": speedup_cell(score["deployable"]),
        "speedup": speedup_cell(score["speedup"]) if score["speedup"] else Cell(),
        "correctness": share_cell(score["correctness"], f"{score['num_valid']} of {score['num_judged']}"),
        "coverage_macro": share_cell(score["coverage"], f"{score['num_valid']} of {score['num_targets']}"),
        "fast_1": fast_cell(score["fast_1"]),
        "fast_1_5": fast_cell(score["fast_1_5"]),
    }


def _ratio(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.3f}{TIMES}"


def speedup_cell(figures: Json) -> Cell:
    """figures: "speedup", with "low" and "high" where it has an interval."""
    low, high = figures.get("low"), figures.get("high")
    if low is None or high is None:
        return Cell(_ratio(figures["speedup"]), figures["speedup"], "" if figures["speedup"] is None else "no interval")
    small = f"{low:.3f} \u2013 {high:.3f}"
    return Cell(_ratio(figures["speedup"]), figures["speedup"], small, low, high)


def share_cell(value: float, small: str = "") -> Cell:
    return Cell(f"{100 * value:.1f} %", value, small)


def fast_cell(found: Json) -> Cell:
    small = f"{100 * found['low']:.0f} \u2013 {100 * found['high']:.0f} %"
    return Cell(f"{found['num_faster']}/{found['num_targets']}", found["share"], small, found["low"], found["high"])
