"""The manifest is read whole or refused with what is wrong; nothing stands in for what was not calibrated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastkernels import registry
from fastkernels.scoring.items import Thresholds
from fastkernels.scoring.manifest import MANIFEST_PATH, MANIFEST_VERSION, load_manifest
from fastkernels.scoring.published import published_constants


def body() -> dict[str, Any]:
    return {
        "version": MANIFEST_VERSION,
        "tau": 1.0,
        "published": {"float32": {"atol": 1e-5, "rtol": 1e-3}},
        "families": {
            "embedding": {
                "discrepancy": "1 - cosine",
                "good": {"float32": 1e-6, "bfloat16": 1e-3},
                "bad": 0.2,
                "margin": 4,
                "provenance": {"command": "fastkernels calibrate embedding", "samples": 64},
            }
        },
    }


def written(folder: Path, content: Any) -> Path:
    path = folder / "manifest.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_thresholds_are_those_of_the_family_and_the_dtype(tmp_path: Path) -> None:
    path = written(tmp_path, body())
    manifest = load_manifest(path)
    assert manifest.thresholds("embedding", "bfloat16") == Thresholds(1e-3, 0.2, 1.0)
    assert manifest.thresholds("embedding", "float32") == Thresholds(1e-6, 0.2, 1.0)
    assert manifest.version == MANIFEST_VERSION
    assert manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest.families["embedding"].margin == 4.0
    assert manifest.published["float32"]["rtol"] == 1e-3


def test_what_was_not_calibrated_has_no_thresholds(tmp_path: Path) -> None:
    manifest = load_manifest(written(tmp_path, body()))
    with pytest.raises(ValueError, match=r"no thresholds of family 'speech'; it has embedding\. Run `fastkernels"):
        manifest.thresholds("speech", "float32")
    with pytest.raises(ValueError, match="'embedding' in float16; it has bfloat16, float32"):
        manifest.thresholds("embedding", "float16")


def _without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda b: b.pop(key)


def _family(**changed: Any) -> Callable[[dict[str, Any]], object]:
    return lambda b: b["families"]["embedding"].update(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.update(version="2025.1"), "is of version '2025.1'; this program reads '2026.11'"),
        (_without("version"), "is of version None"),
        (_without("tau"), "has the keys families, published, version; they are families, published, tau, version"),
        (lambda b: b.update(notes=""), "families, notes, published"),
        (lambda b: b.update(tau="1"), 'tau is "1", not a finite number'),
        (lambda b: b.update(tau=1.5), "in float32: tau is 1.5; it is over 0 and at most 1"),
        (lambda b: b.update(families=[]), r"families is \[\], not an object"),
        (lambda b: b["families"].update(odour={}), "no family 'odour'; known are classification, detection"),
        (lambda b: b["published"].update(float16={"atol": 1}), "published float16 has the keys atol"),
        (lambda b: b["families"]["embedding"].pop("margin"), "family 'embedding' has the keys bad, discrepancy"),
        (_family(good={"float32": 0.2}), "'embedding' in float32: good is 0.2 and bad 0.2; 0 <= good < bad"),
        (_family(good={"float32": -1}), "good is -1.0 and bad 0.2"),
        (_family(good={"float32": float("nan")}), "good of 'embedding' in float32 is NaN, not a finite number"),
        (_family(good={}), "no dtype under 'good'"),
        (_family(good=0.1), "good of 'embedding' is 0.1, not an object"),
        (_family(bad=None), "bad of 'embedding' is null"),
        (_family(bad=True), "bad of 'embedding' is true"),
        (_family(margin=0), "margin of 'embedding' is 0.0; it is over 0"),
        (_family(provenance={}), "provenance of 'embedding' has no 'command'; it has nothing"),
    ],
)
def test_a_manifest_that_is_not_one_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    content = body()
    change(content)
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        load_manifest(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("content", "message"), [("{", "is not JSON"), ("[]", "of version None")])
def test_a_file_that_is_not_a_manifest_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_manifest(written(tmp_path, content))


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.json cannot be read: No such file"):
        load_manifest(tmp_path / "nowhere.json")


@pytest.mark.skipif(not MANIFEST_PATH.exists(), reason="no manifest has been written yet")
def test_the_shipped_manifest_knows_every_registered_family() -> None:
    manifest = load_manifest()
    assert {a.family for a in registry.ARCHITECTURES} <= set(manifest.families)
    assert manifest.published == published_constants()["dtype_tolerances"]
    assert manifest.tau == published_constants()["tau"]
