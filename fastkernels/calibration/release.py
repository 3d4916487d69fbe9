"""What a calibration leaves behind: a file with every sample, and the manifest that scores are reckoned by."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastkernels.calibration.samples_shape import samples_fault
from fastkernels.calibration.versions import read_before, require_version, version_of_copy
from fastkernels.errors import InputFileError, UsageError
from fastkernels.scoring.manifest import MANIFEST_PATH, MANIFEST_VERSION, load_manifest
from fastkernels.scoring.published import published_constants

SAMPLES = "benchmarks/results/cpu/calibration.json"
"""In a checkout; the manifest's provenance names it."""

_ROOT = Path(__file__).resolve().parents[2]
_NUMBERS = re.compile(r"\[\s+((?:[-+.\deE]+,\s+)*[-+.\deE]+)\s+\]")
_POINT = re.compile(r"\{\s+(\"severity\"[^{}]*?)\s+\}")


def check_place(samples: Path, manifest: Path) -> None:
    """Before the minutes that measuring takes. Errors: InputFileError when what is there cannot be added to."""
    _read_samples(samples)
    read_before(manifest)


def write_samples(record: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """With the families that the file held before and that were not measured anew; what was written.

    Errors: InputFileError when the file is no such record.
    """
    before = _read_samples(path)
    families = {**before, **record["families"]}
    whole = {**record, "families": {name: families[name] for name in sorted(families)}}
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, whole)
    return whole


def write_manifest(record: Mapping[str, Any], path: Path) -> None:
    """The entries of the record's families, beside those of others in the manifest that is there.

    Errors: InputFileError when that is none, UsageError when its thresholds would change and its version would not.
    """
    check_version(record, path)
    _write_manifest(_families(record, path), path, MANIFEST_VERSION)


def check_version(record: Mapping[str, Any], path: Path) -> None:
    """Before anything that is shipped changes. Errors: as write_manifest."""
    require_version(path, read_before(path), published_constants()["tau"], _families(record, path))


def write_copy(record: Mapping[str, Any], path: Path, before: Path) -> str:
    """As write_manifest, of the manifest `before`; returns its version, a draft's where its thresholds are others.

    Errors: InputFileError when `before` is no manifest.
    """
    families = _families(record, before)
    version = version_of_copy(read_before(before), published_constants()["tau"], families)
    _write_manifest(families, path, version)
    return version


def _families(record: Mapping[str, Any], before: Path) -> dict[str, Any]:
    """As the file of a manifest has them. Errors: InputFileError when `before` is none."""
    known: dict[str, Any] = {}
    if read_before(before) is not None:
        known = json.loads(before.read_text(encoding="utf-8"))["families"]
    return {**known, **{name: manifest_entry(one) for name, one in record["families"].items()}}


def _write_manifest(families: Mapping[str, Any], path: Path, version: str) -> None:
    constants = published_constants()
    body = {
        "version": version,
        "tau": constants["tau"],
        "published": constants["dtype_tolerances"],
        "families": {name: families[name] for name in sorted(families)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, body)
    load_manifest(path, version)


def manifest_entry(record: Mapping[str, Any]) -> dict[str, Any]:
    """Of one family of a record."""
    used = ("decided_by", "largest", "floor", "left_out", "accepted_damaged")
    return {
        "discrepancy": record["discrepancy"],
        "good": {dtype: good["value"] for dtype, good in record["good"].items()},
        "bad": record["bad"]["value"],
        "margin": record["margin"],
        "provenance": {
            "command": record["command"],
            "created": record["created"],
            "environment": record["environment"],
            "samples": SAMPLES,
            "num_samples": {
                "noise": sum(len(sample["values"]) for sample in record["noise"]),
                "damaged": sum(len(curve["points"]) for curve in record["curves"]),
            },
            "floor": record["floor"],
            "good": {dtype: {key: good[key] for key in used} for dtype, good in record["good"].items()},
            "bad": {key: record["bad"][key] for key in ("decided_by", "random")},
        },
    }


def checkout_paths() -> tuple[Path, Path]:
    """The shipped manifest and the file of samples. Errors: UsageError when this is an installed package."""
    samples = _ROOT / SAMPLES
    if not samples.parent.is_dir():
        raise UsageError(f"--write changes the project's own files, and {_ROOT} is no checkout of it. Use --out.")
    return MANIFEST_PATH, samples


def _read_samples(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputFileError(f"{path} holds no samples of a calibration: {error}. Delete it.") from error
    if found := samples_fault(record):
        raise InputFileError(f"{path} holds no samples of a calibration: {found}. Delete it.")
    families: dict[str, Any] = record["families"]
    return families


def _write(path: Path, body: Any) -> None:
    """Under a temporary name first; lists of numbers and points in one line each."""
    text = json.dumps(body, indent=1)
    text = _NUMBERS.sub(lambda found: f"[{' '.join(found.group(1).split())}]", text)
    text = _POINT.sub(lambda found: "{" + " ".join(found.group(1).split()) + "}", text)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)
