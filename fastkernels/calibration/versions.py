"""What a manifest's version promises: the thresholds that every score of that version was made by.

A threshold that a calibration changes needs another version, MANIFEST_VERSION raised by hand; until then what was
measured is a draft, by which nothing is judged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastkernels.errors import InputFileError, UsageError
from fastkernels.scoring.manifest import MANIFEST_VERSION, Manifest, load_manifest

DRAFT = f"{MANIFEST_VERSION}-draft"
"""Of a manifest beside the shipped one, with other thresholds."""


def read_before(path: Path) -> Manifest | None:
    """The manifest whose entries go on: of this program's version, a draft of it, or of an earlier version, which is
    what is there once MANIFEST_VERSION was raised. None where there is no file.

    Errors: InputFileError when it is none of these.
    """
    if not path.exists():
        return None
    version = _version(path)
    try:
        return load_manifest(path, version if version == DRAFT or _is_earlier(version) else MANIFEST_VERSION)
    except ValueError as error:
        raise InputFileError(f"{error} Nothing was written; mend or delete it.") from error


def _version(path: Path) -> str:
    """As it says; what is no manifest is told by who reads it whole."""
    try:
        return str(json.loads(path.read_bytes())["version"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _is_earlier(version: str) -> bool:
    parts = version.split(".")
    return all(part.isdecimal() for part in parts) and _numbers(version) < _numbers(MANIFEST_VERSION)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def changed_thresholds(before: Manifest, tau: float, families: Mapping[str, Any]) -> list[str]:
    """Each threshold of `before` that is another in `families` (entries as in a manifest's file), with both values.

    What was not calibrated before changes nothing: it had no score.
    """
    found = [f"tau from {before.tau:g} to {tau:g}"] if tau != before.tau else []
    for name, old in before.families.items():
        new = families.get(name)
        good = {} if new is None else new["good"]
        pairs = [(f"good of {name} in {dtype}", value, good.get(dtype)) for dtype, value in old.good.items()]
        pairs.append((f"bad of {name}", old.bad, None if new is None else new["bad"]))
        found += [f"{what} from {was:.6g} to {_shown(now)}" for what, was, now in pairs if was != now]
    return found


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"


def version_of_copy(before: Manifest | None, tau: float, families: Mapping[str, Any]) -> str:
    """Of a manifest that is made of `before` and stands beside it."""
    if before is None or before.version not in (MANIFEST_VERSION, DRAFT):
        return MANIFEST_VERSION
    return DRAFT if before.version == DRAFT or changed_thresholds(before, tau, families) else MANIFEST_VERSION


def require_version(path: Path, before: Manifest | None, tau: float, families: Mapping[str, Any]) -> None:
    """Errors: UsageError when the manifest at `path` would get other thresholds and keep its version."""
    if before is None or before.version != MANIFEST_VERSION:
        return
    if changed := changed_thresholds(before, tau, families):
        raise UsageError(
            f"{path} keeps what it says: {_listed(changed)}, and scores of one version are of the same thresholds. "
            f"Raise MANIFEST_VERSION ({MANIFEST_VERSION}) in scoring/manifest.py, and measure with --write again."
        )


def _listed(changed: list[str], most: int = 6) -> str:
    more = f" and {len(changed) - most} more" if len(changed) > most else ""
    return f"{', '.join(changed[:most])}{more} would change under version {MANIFEST_VERSION}"
