"""The tables that agents are ranked in: entries that compare with each other; and what was published of agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastkernels.leaderboard.conditions import conditions, in_words
from fastkernels.leaderboard.metrics import EVAL_METRICS, KERNELS_METRICS, Cell, Metric, eval_cells, kernels_cells
from fastkernels.leaderboard.places import Place, places
from fastkernels.scoring.published import COMBINED, PublishedLevel, published_agents

Json = dict[str, Any]

_RANGE = "empirical range"


@dataclass(frozen=True)
class RankRow:
    """One agent, at one level. places: among those of its table and level, by metric."""

    entry: Json
    level: str
    cells: dict[str, Cell]
    places: dict[str, Place] = field(default_factory=dict)


@dataclass(frozen=True)
class RankTable:
    """Entries that compare: of one kind, scenario set, hardware and manifest, judged by the same (conditions).

    manifest: in words, "" where the site has one alone. judged: on what, in words.
    """

    name: str
    kind: str
    title: str
    hardware: str
    manifest: str
    judged: str
    metrics: Sequence[Metric]
    rows: list[RankRow] = field(default_factory=list)

    @property
    def has_levels(self) -> bool:
        return self.kind == "kernels"


def rank_tables(entries: Sequence[Json]) -> list[RankTable]:
    """Whole models first, then kernels; rows by level and rank."""
    groups: dict[tuple[str, ...], list[Json]] = {}
    for entry in entries:
        wanted = (entry["kind"], entry["scenario_set"], entry["hardware"], *manifest_of(entry), conditions(entry))
        groups.setdefault(wanted, []).append(entry)
    has_several = len(manifests(entries)) > 1
    tables = []
    for number, (key, found) in enumerate(sorted(groups.items())):
        kind, scenario_set, hardware, version, sha256, _ = key
        title = f"Whole models: {scenario_set}" if kind == "eval" else "Kernels"
        manifest = f"manifest {version}, SHA-256 {sha256[:12]}" if version and has_several else ""
        metrics = EVAL_METRICS if kind == "eval" else KERNELS_METRICS
        table = RankTable(f"ranking-{number}", kind, title, hardware, manifest, in_words(found[0]), metrics)
        table.rows.extend(_ranked([row for entry in found for row in _rows(entry)], metrics))
        tables.append(table)
    return tables


def manifest_of(entry: Json) -> tuple[str, str]:
    """Version and SHA-256 of what said which answers are right; empty for an entry of kernels."""
    found = entry["manifest"] or {}
    return found.get("version", ""), found.get("sha256", "")


def manifests(entries: Sequence[Json]) -> dict[tuple[str, str], list[Json]]:
    """The entries of whole models by their manifest."""
    found: dict[tuple[str, str], list[Json]] = {}
    for entry in sorted((e for e in entries if e["kind"] == "eval"), key=manifest_of):
        found.setdefault(manifest_of(entry), []).append(entry)
    return found


def _rows(entry: Json) -> list[RankRow]:
    if entry["kind"] == "eval":
        return [RankRow(entry, "", eval_cells(entry["scores"]))]
    return [RankRow(entry, level, kernels_cells(score)) for level, score in entry["scores"].items()]


def _ranked(rows: Sequence[RankRow], metrics: Sequence[Metric]) -> list[RankRow]:
    """By the first metric; the places of all."""
    found: list[RankRow] = []
    for level in dict.fromkeys(row.level for row in rows):
        first = metrics[0].key
        chosen = sorted((r for r in rows if r.level == level), key=lambda r: -(r.cells[first].value or 0))
        names = [row.entry["agent"] for row in chosen]
        by_metric = {m.key: places(names, [row.cells[m.key] for row in chosen], m) for m in metrics}
        found += [replace(row, places={k: of[i] for k, of in by_metric.items()}) for i, row in enumerate(chosen)]
    return found


@dataclass(frozen=True)
class PublishedRow:
    """What was published of an agent at one level. fast_1, fast_1_5: of the correct ones, as published."""

    agent: str
    level: str
    figures: PublishedLevel

    @property
    def interval(self) -> str:
        """Words where none was published; of two kernels it is their range."""
        f = self.figures
        if f.low is None or f.high is None:
            return "no interval"
        return f"{f.low:.3f} \u2013 {f.high:.3f}{', a range' if f.interval == _RANGE else ''}"

    def faster(self, factor: float) -> str:
        count = self.figures.num_faster.get(factor)
        return "\u2013" if count is None else f"{count} of {self.figures.num_correct}"


def published_rows() -> list[PublishedRow]:
    """By level, L1 and L2 together first, in the order of the published table."""
    levels = {COMBINED: "L1+L2", "L1": "L1", "L2": "L2"}
    return [
        PublishedRow(agent.name, title, agent.levels[level])
        for level, title in levels.items()
        for agent in published_agents()
        if level in agent.levels
    ]
