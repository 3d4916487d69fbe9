"""The catalogue of known cheats, and the honest twins: data from catalogue.json, with the folder of each file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from fastkernels.harness.verdict import Verdict

_HERE = Path(__file__).parent
REFUTED = "LOSS"
"""Beside verdicts: the answers pass, and the claim to be faster is refuted in every case."""


class Status(StrEnum):
    """Whether an entry is a file of the suite, and if not, why."""

    WRITTEN = "written"
    NOT_WRITTEN = "not written"
    PREVENTED = "prevented by construction"
    TWO_RANKS = "two ranks"


@dataclass(frozen=True)
class Item:
    """One implementation set of the suite.

    accepted: verdicts that are right for it, more than one where a race decides. needs: "cpu" (either device) or
    "gpu". is_timed: it shows only while it is timed.
    """

    name: str
    family: str
    op: str
    needs: str
    path: Path
    accepted: tuple[str, ...]
    is_timed: bool
    is_cheat: bool
    fools_a_naive_judge: bool = False

    def runs_on(self, device: str) -> bool:
        return self.needs == "cpu" or device.startswith("cuda")


@dataclass(frozen=True)
class Entry:
    """One known cheat. test: what shows that it fails; cheats: its files, none where it is not written."""

    id: str
    name: str
    family: str
    what: str
    source: tuple[str, ...]
    status: Status
    caught_by: str
    test: str
    cheats: tuple[Item, ...]


@cache
def _data() -> dict[str, Any]:
    return json.loads((_HERE / "catalogue.json").read_text())


@cache
def entries() -> tuple[Entry, ...]:
    """All entries: the published ones (T timing, C correctness, S result channel), then those found here (X)."""
    return tuple(
        Entry(
            **{name: row[name] for name in ("id", "name", "family", "what", "caught_by", "test")},
            source=tuple(row["source"]),
            status=Status(row["status"]),
            cheats=tuple(_cheat(row["family"], cheat) for cheat in row["cheats"]),
        )
        for row in _data()["entries"]
    )


def _cheat(family: str, row: dict[str, Any]) -> Item:
    return Item(
        name=row["folder"],
        family=family,
        op=row["op"],
        needs=row["needs"],
        path=_HERE / "cheats" / row["folder"],
        accepted=tuple(row["accepted"]),
        is_timed=row["is_timed"],
        is_cheat=True,
        fools_a_naive_judge=row["fools_a_naive_judge"],
    )


@cache
def twins() -> tuple[Item, ...]:
    """Honest implementations that look like cheats; every one must pass."""
    return tuple(
        Item(
            name=row["folder"],
            family=row["family"],
            op=row["op"],
            needs=row["needs"],
            path=_HERE / "twins" / row["folder"],
            accepted=(Verdict.PASSED.value,),
            is_timed=row["is_timed"],
            is_cheat=False,
        )
        for row in _data()["twins"]
    )


def items() -> tuple[Item, ...]:
    """Every file of the suite: cheats by id, then twins."""
    return tuple(cheat for entry in entries() for cheat in entry.cheats) + twins()
