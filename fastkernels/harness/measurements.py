"""The production paths' own errors on file: harness/measured/<op>.json, a line for each dtype and family."""

from __future__ import annotations

import hashlib
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from fastkernels.errors import InputFileError

FOLDER = Path(__file__).with_name("measured")
PUBLISHED = Path(__file__).with_name("tolerances.json")

Errors = dict[str, dict[str, dict[str, dict[str, float]]]]
"""By dtype, family, output and field of tolerance.Error."""
FIELDS = ("element", "row", "bias", "max_abs", "all_rows")

_PARTS: dict[str, tuple[type, str]] = {
    "errors": (dict, "an object"),
    "measurements": (list, "a list"),
    "notes": (list, "a list"),
}
_DEPTH = 3
"""Of names in Errors before a field's: dtype, family and output."""


@cache
def published() -> dict[str, Any]:
    """The published table, and the least that a row's bound is."""
    return json.loads(PUBLISHED.read_text())


@cache
def measured(op: str) -> Errors:
    """What was measured of an op; empty for one that was not."""
    return read_record(FOLDER / f"{op}.json")["errors"]


@cache
def tolerances_digest() -> str:
    """SHA-256 over the published table and what was measured of every op: all files that tolerances are made of."""
    errors = {op: measured(op) for op in sorted(measured_ops())}
    return hashlib.sha256(json.dumps([published(), errors], sort_keys=True).encode()).hexdigest()


def measured_ops() -> set[str]:
    return {path.stem for path in FOLDER.glob("*.json")}


def read_record(path: Path) -> dict[str, Any]:
    """errors; measurements: when, where and how, oldest first; notes. Empty where there is no file.

    Errors: InputFileError names the file and what of it is not so.
    """
    if not path.is_file():
        return {"errors": {}, "measurements": [], "notes": []}
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputFileError(f"{path} is cut off or altered: {error}. Measure the op again.") from None
    if found := record_fault(record):
        raise InputFileError(f"{path} holds no measured errors of an op: {found}. Measure the op again.")
    known: dict[str, Any] = record
    return known


def record_fault(record: object) -> str:
    """What of a file's content is not as write_record leaves it, by its place; "" of a whole one."""
    if not isinstance(record, dict):
        return "it is not a JSON object"
    for name, (kind, in_words) in _PARTS.items():
        if name not in record:
            return f"it lacks {name}"
        if not isinstance(record[name], kind):
            return f"{name} is {_shown(record[name])}, not {in_words}"
    if unknown := sorted(set(record["errors"]) - set(published()["published"])):
        return f"errors.{unknown[0]} is of no dtype that there are tolerances of"
    return _errors_fault(record["errors"], "errors", _DEPTH)


def _errors_fault(found: dict[str, Any], where: str, depth: int) -> str:
    for name, value in found.items():
        place = f"{where}.{name}"
        if not depth and name not in FIELDS:
            return f"{place} is none of {', '.join(FIELDS)}"
        if not depth and not _is_error(value):
            return f"{place} is {_shown(value)}, not a finite number of at least 0"
        if depth and not isinstance(value, dict):
            return f"{place} is {_shown(value)}, not an object"
        if depth and (wrong := _errors_fault(value, place, depth - 1)):
            return wrong
    return ""


def _is_error(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _shown(value: object) -> str:
    return repr(value)[:40]


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
