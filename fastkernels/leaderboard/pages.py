"""What each page of the site shows, from the entries of a board. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastkernels.leaderboard.conditions import conditions, differing_words
from fastkernels.leaderboard.entry import SHARED_FILE
from fastkernels.leaderboard.eval_entry import item_lower_bounds
from fastkernels.leaderboard.figures import Curve
from fastkernels.leaderboard.op_scores import lower_bounds
from fastkernels.report.scopes import MAIN_LEVELS

Json = dict[str, Any]

HEAT_STEPS = (0.8, 0.9, 0.97, 1.03, 1.1, 1.25)
"""Bounds between the colours of the heat map, from clearly slower to clearly faster."""


@dataclass(frozen=True)
class HeatCell:
    """One agent's items of one family. step: -1 where none is valid, else how many of HEAT_STEPS the speedup passes."""

    num_items: int
    num_valid: int
    speedup: float | None
    correctness: float
    step: int


@dataclass(frozen=True)
class HeatMap:
    """rows: (entry, cells in the order of families); a cell is None where the run has no item of the family."""

    families: Sequence[str]
    rows: Sequence[tuple[Json, Sequence[HeatCell | None]]]


def heat_map(entries: Sequence[Json]) -> HeatMap | None:
    """Of every entry from an eval run, by deployable speedup. None without one."""
    found = [e for e in entries if e["kind"] == "eval"]
    if not found:
        return None
    found.sort(key=lambda e: (e["scenario_set"], e["hardware"], -e["scores"]["deployable"]["speedup"]))
    families = sorted({name for e in found for name in _families(e)})
    return HeatMap(families, [(e, [_heat_cell(_families(e).get(name)) for name in families]) for e in found])


def _families(entry: Json) -> dict[str, Json]:
    found: dict[str, Json] = entry["scores"]["macroeval"]["0.5"]["families"]
    return found


def _heat_cell(family: Json | None) -> HeatCell | None:
    if family is None:
        return None
    speedup = family["speedup"]
    step = -1 if not family["num_valid"] else sum((speedup or 1.0) > bound for bound in HEAT_STEPS)
    return HeatCell(family["num_items"], family["num_valid"], speedup, family["correctness"], step)


def curves(entries: Sequence[Json], kind: str) -> list[Curve]:
    """For fast_p: items of eval runs, or the ops of L1 and L2 of kernels runs."""
    found = []
    for entry in entries:
        if entry["kind"] == kind:
            lows = item_lower_bounds(entry["items"]) if kind == "eval" else _op_lows(entry)
            if lows:
                found.append(Curve(curve_name(entry, entries), lows))
    return found


def _op_lows(entry: Json) -> list[float | None]:
    ops = [op for op in entry["ops"] if op["level"] in MAIN_LEVELS]
    return lower_bounds(ops, sum(entry["targets"].get(str(level), 0) for level in MAIN_LEVELS)) if ops else []


def curve_name(entry: Json, entries: Sequence[Json]) -> str:
    """The agent, with scenario set, hardware and what else it was judged on where entries of the kind differ in it."""
    alike = [e for e in entries if e["kind"] == entry["kind"]]
    differing = {(e["scenario_set"], e["hardware"]) for e in alike}
    parts = [entry["agent"], *((entry["scenario_set"], entry["hardware"]) if len(differing) > 1 else ())]
    return " \u00b7 ".join(filter(None, (*parts, differing_words(entry, alike))))


@dataclass(frozen=True)
class Kernels:
    """names: those that were launched, as the candidate's process says; else those that its source names."""

    agent: str
    names: Sequence[str]
    is_launched: bool


@dataclass(frozen=True)
class OpView:
    """One op over all entries that judged it. found: (entry, its record)."""

    name: str
    level: int
    found: Sequence[tuple[Json, Json]]

    @property
    def num_passed(self) -> int:
        return sum(op["verdict"] == "PASSED" for _, op in self.found)

    @property
    def best(self) -> list[tuple[Json, Json]]:
        """The fastest that passed of those that compare: on each hardware, judged by the same; the commonest first. One
        that was let through by force only where there is no other."""
        timed = [(entry, op) for entry, op in self.found if op["verdict"] == "PASSED" and op["speedup"] is not None]
        groups: dict[tuple[str, str], list[tuple[Json, Json]]] = {}
        for entry, op in timed:
            groups.setdefault((entry["hardware"], conditions(entry)), []).append((entry, op))
        alike = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
        return [max(pairs, key=lambda pair: (not pair[0]["marks"], pair[1]["speedup"])) for _, pairs in alike]

    @property
    def kernels(self) -> list[Kernels]:
        """Of every entry that has any; what was launched goes before what the source names."""
        named = [(e["agent"], op.get("launched") or [], op["kernels"]) for e, op in self.found]
        return [
            Kernels(agent, launched or names, bool(launched)) for agent, launched, names in named if launched or names
        ]

    @property
    def hardware(self) -> list[str]:
        return sorted({entry["hardware"] for entry, _ in self.found})

    @property
    def num_conditions(self) -> int:
        """Ways in which the op was judged that do not compare, hardware apart."""
        return len({conditions(entry) for entry, _ in self.found})


def op_views(entries: Sequence[Json]) -> list[OpView]:
    """Lowest level first."""
    found: dict[tuple[int, str], list[tuple[Json, Json]]] = {}
    for entry in entries:
        for op in entry.get("ops", []):
            found.setdefault((op["level"], op["op"]), []).append((entry, op))
    return [OpView(name, level, pairs) for (level, name), pairs in sorted(found.items())]


@dataclass(frozen=True)
class Source:
    """One text that stands in for an op, with all entries that have it. name: in their sources, "" where none was kept.
    is_shared: it is not of this op alone (an adapt.py derives classes for many), and shown on the agents' pages.
    num_lines, num_baseline_lines: of a file of which an entry has the beginning, else None."""

    entries: Sequence[Json]
    file: str
    name: str
    baseline: str
    text: str
    num_lines: int | None = None
    num_baseline_lines: int | None = None

    @property
    def is_shared(self) -> bool:
        return self.file == SHARED_FILE

    @property
    def agents(self) -> list[str]:
        return list(dict.fromkeys(entry["agent"] for entry in self.entries))


def op_sources(view: OpView) -> list[Source]:
    groups: dict[tuple[str, str, str], list[Json]] = {}
    for entry, op in view.found:
        groups.setdefault((op["source"], op["baseline_source"], op["file"]), []).append(entry)
    sources = []
    for (name, baseline, file), owners in groups.items():
        texts, cut = owners[0]["sources"], owners[0].get("cut_sources", {})
        both = (texts.get(baseline, ""), texts.get(name, ""))
        sources.append(Source(owners, file, name, *both, cut.get(name), cut.get(baseline)))
    return sources


@dataclass(frozen=True)
class AgentView:
    """All entries of one agent."""

    name: str
    entries: Sequence[Json]

    def shared_sources(self, entry: Json) -> list[tuple[str, str]]:
        """(name, text) of files that stand in for many ops."""
        names = dict.fromkeys(op["source"] for op in entry.get("ops", []) if op["file"] == SHARED_FILE and op["source"])
        return [(name, entry["sources"][name]) for name in names]


def agent_views(entries: Sequence[Json]) -> list[AgentView]:
    """By name; spellings that differ in case alone are one agent."""
    found: dict[str, list[Json]] = {}
    for entry in entries:
        found.setdefault(entry["agent"].casefold(), []).append(entry)
    return [AgentView(group[0]["agent"], group) for _, group in sorted(found.items())]
