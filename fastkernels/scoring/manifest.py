"""The frozen manifest of MacroEval: within which discrepancy an answer counts as the reference's, from which it is
unusable, for each family and dtype, with where that was measured.

manifest.json is written by `fastkernels calibrate` and read here:
{"version": "2026.11", "tau": 1.0, "published": {dtype: {"atol", "rtol"}},
 "families": {family: {"discrepancy": in words, "good": {dtype: g}, "bad": f, "margin": k, "provenance": {...}}}}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastkernels.scoring.items import Family, Thresholds

MANIFEST_VERSION = "2026.11"
"""Scores of two versions are not comparable: whatever changes a threshold changes it (calibration/versions.py)."""

MANIFEST_PATH = Path(__file__).with_name("manifest.json")


@dataclass(frozen=True)
class FamilyThresholds:
    """discrepancy: what D_f is, in words. good: by dtype; bad: of every dtype. margin: the multiple of the reference's
    own noise that `good` is. provenance: the command, environment, samples and curve that it comes of."""

    discrepancy: str
    good: Mapping[str, float]
    bad: float
    margin: float
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """sha256: of the file. published: atol and rtol by dtype, Table 3. families: those that were calibrated."""

    version: str
    sha256: str
    tau: float
    published: Mapping[str, Mapping[str, float]]
    families: Mapping[str, FamilyThresholds]

    def thresholds(self, family: str, dtype: str) -> Thresholds:
        """Errors: ValueError when the family or its dtype was not calibrated: none stands in for another."""
        if family not in self.families:
            raise ValueError(
                f"Manifest {self.version} has no thresholds of family {family!r}; it has {_listed(self.families)}. "
                f"Run `fastkernels calibrate {family}`."
            )
        entry = self.families[family]
        if dtype not in entry.good:
            raise ValueError(
                f"Manifest {self.version} has no thresholds of family {family!r} in {dtype}; it has "
                f"{_listed(entry.good)}. Run `fastkernels calibrate {family}` with it."
            )
        return Thresholds(entry.good[dtype], entry.bad, self.tau)


def load_manifest(path: Path | None = None, version: str = MANIFEST_VERSION) -> Manifest:
    """The shipped manifest, or another. version: which it must be of; scores are made by this program's alone.

    Errors: ValueError names the file, its version and what is wrong.
    """
    path = path or MANIFEST_PATH
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"The manifest {path} cannot be read: {error.strerror}.") from error
    try:
        body = json.loads(content)
    except ValueError as error:
        raise ValueError(f"The manifest {path} is not JSON: {error}.") from error
    found = body.get("version") if isinstance(body, dict) else None
    if found != version:
        raise ValueError(f"The manifest {path} is of version {found!r}; this program reads {version!r}.")
    try:
        return _manifest(body, hashlib.sha256(content).hexdigest())
    except ValueError as error:
        raise ValueError(f"The manifest {path}, version {found}: {error}") from error


def _manifest(body: dict[str, Any], sha256: str) -> Manifest:
    _check_keys("The manifest", body, ("version", "tau", "published", "families"))
    tau = _number("tau", body["tau"])
    published = _object("published", body["published"])
    for dtype, limits in published.items():
        _check_keys(f"published {dtype}", limits, ("atol", "rtol"))
    families = _object("families", body["families"])
    unknown = sorted(set(families) - set(Family))
    if unknown:
        raise ValueError(f"there is no family {', '.join(map(repr, unknown))}; known are {_listed(list(Family))}.")
    return Manifest(
        version=body["version"],
        sha256=sha256,
        tau=tau,
        published={d: {k: _number(f"{k} of {d}", v) for k, v in limits.items()} for d, limits in published.items()},
        families={name: _family(name, entry, tau) for name, entry in families.items()},
    )


def _family(name: str, entry: Any, tau: float) -> FamilyThresholds:
    _check_keys(f"family {name!r}", entry, ("discrepancy", "good", "bad", "margin", "provenance"))
    good = {d: _number(f"good of {name!r} in {d}", g) for d, g in _object(f"good of {name!r}", entry["good"]).items()}
    bad, margin = (_number(f"{key} of {name!r}", entry[key]) for key in ("bad", "margin"))
    if not good:
        raise ValueError(f"family {name!r} has no dtype under 'good'.")
    if not margin > 0:
        raise ValueError(f"margin of {name!r} is {margin}; it is over 0.")
    for dtype, value in good.items():
        try:
            Thresholds(value, bad, tau)
        except ValueError as error:
            raise ValueError(f"family {name!r} in {dtype}: {error}") from error
    provenance = _object(f"provenance of {name!r}", entry["provenance"])
    if "command" not in provenance:
        raise ValueError(f"provenance of {name!r} has no 'command'; it has {_listed(provenance)}.")
    return FamilyThresholds(str(entry["discrepancy"]), good, bad, margin, provenance)


def _check_keys(what: str, body: Any, wanted: tuple[str, ...]) -> None:
    """Errors: ValueError when one is missing or one too many."""
    found = set(_object(what, body))
    if found != set(wanted):
        raise ValueError(f"{what} has the keys {_listed(found)}; they are {_listed(wanted)}.")


def _object(what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {json.dumps(value)[:60]}, not an object.")
    return value


def _number(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise ValueError(f"{what} is {json.dumps(value)[:60]}, not a finite number.")
    return float(value)


def _listed(names: Any) -> str:
    return ", ".join(sorted(map(str, names))) or "nothing"
