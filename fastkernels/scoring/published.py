"""What was published of kernel agents, as data: Tables 1 and 3 to 6 of the FastKernels paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_DATA = Path(__file__).with_name("data")

COMBINED = "all"
"""The level of L1 and L2 together."""


@dataclass(frozen=True)
class PublishedLevel:
    """num_correct: of num_attempted; num_attempted and num_blocked: of num_targets. speedup: the geometric mean over
    correct targets, with its 95 % interval (interval: "bootstrap", or "empirical range" of two); None of none.
    num_faster: of the correct ones, by factor."""

    level: str
    num_targets: int
    num_attempted: int
    num_blocked: int
    num_correct: int
    speedup: float | None
    low: float | None
    high: float | None
    interval: str | None
    num_faster: Mapping[float, int]
    printed_speedup: float | None


@dataclass(frozen=True)
class PublishedAgent:
    """provenance says whose measurement it is: none of these figures was measured by this program."""

    name: str
    levels: Mapping[str, PublishedLevel]
    provenance: str

    @property
    def combined(self) -> PublishedLevel:
        return self.levels[COMBINED]


@cache
def published_agents() -> tuple[PublishedAgent, ...]:
    """In the order of Table 1."""
    body = published_tables()
    agents: dict[str, dict[str, PublishedLevel]] = {}
    for row in body["levels"]:
        faster = {float(p): count for p, count in (row["num_faster"] or {}).items()}
        fields = {key: value for key, value in row.items() if key not in ("agent", "num_faster")}
        agents.setdefault(row["agent"], {})[row["level"]] = PublishedLevel(**fields, num_faster=faster)
    return tuple(PublishedAgent(name, levels, body["provenance"]) for name, levels in agents.items())


@cache
def published_tables() -> dict[str, Any]:
    """data/published_agents.json: beside the agents' levels, "tolerance_sensitivity" (Table 4), "policies" (Table 5),
    "by_reference_type" and single "kernels" (section 6.2)."""
    return json.loads((_DATA / "published_agents.json").read_text(encoding="utf-8"))


@cache
def published_constants() -> dict[str, Any]:
    """data/published_constants.json: blend, tau, scales, the bootstrap, and tolerances by dtype (Table 3)."""
    return json.loads((_DATA / "published_constants.json").read_text(encoding="utf-8"))
