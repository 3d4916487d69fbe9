"""The production paths' own errors on file: harness/measured/<op>.json, a line for each dtype and family."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("measured")
PUBLISHED = Path(__file__).with_name("tolerances.json")

Errors = dict[str, dict[str, dict[str, dict[str, float]]]]
"""By dtype, family, output and field of tolerance.Error."""


@cache
def published() -> dict[str, Any]:
    """The published table, and the least that a row's bound is."""
    return json.loads(PUBLISHED.read_text())


@cache
def measured(op: str) -> Errors:
    """What was measured of an op; empty for one that was not."""
    return read_record(FOLDER / f"{op}.json")["errors"]


def measured_ops() -> set[str]:
    return {path.stem for path in FOLDER.glob("*.json")}


def read_record(path: Path) -> dict[str, Any]:
    """errors; measurements: when, where and how, oldest first; notes."""
    if not path.is_file():
        return {"errors": {}, "measurements": [], "notes": []}
    return json.loads(path.read_text())


def write_record(path: Path, record: dict[str, Any]) -> None:
    """JSON that a person can read and a version control can merge; whole or as it was, whenever this is cut short."""
    errors = record["errors"]
    dtypes = [
        f"  {json.dumps(dtype)}: {{\n"
        + ",\n".join(
            f"   {json.dumps(family)}: {json.dumps(errors[dtype][family], sort_keys=True)}"
            for family in sorted(errors[dtype])
        )
        + "\n  }"
        for dtype in sorted(errors)
    ]
    measurements = [f"  {json.dumps(one, sort_keys=True)}" for one in record["measurements"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(
        '{\n "errors": {\n'
        + ",\n".join(dtypes)
        + '\n },\n "measurements": [\n'
        + ",\n".join(measurements)
        + f'\n ],\n "notes": {json.dumps(record["notes"])}\n}}\n'
    )
    temporary.replace(path)
