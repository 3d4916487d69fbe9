"""A manifest's version is of its thresholds: one that changes needs another."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from fastkernels.calibration import release, versions
from fastkernels.cli import main
from fastkernels.errors import InputFileError, UsageError
from fastkernels.scoring import manifest as manifests
from fastkernels.scoring.manifest import MANIFEST_PATH, MANIFEST_VERSION, load_manifest

ROOT = Path(__file__).resolve().parents[2]
DIGESTS = {"2026.11": "19bf51c0885e39662eee05f1e35a68c6473987f765925af7902b020c808f998d"}
"""Of the thresholds of each version that there was. A line is added with a version, and none is ever changed."""
NEXT = "2026.12"


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / release.SAMPLES).read_text())
    return found


@pytest.fixture
def record(whole: dict[str, Any]) -> dict[str, Any]:
    """As a calibration of language gives it."""
    return copy.deepcopy({**whole, "families": {"language": whole["families"]["language"]}})


@pytest.fixture
def shipped(tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A checkout's two files, which --write changes."""
    paths = tmp_path / "manifest.json", tmp_path / "samples.json"
    paths[0].write_bytes(MANIFEST_PATH.read_bytes())
    paths[1].write_text(json.dumps(whole))
    monkeypatch.setattr("fastkernels.cli.calibrate.checkout_paths", lambda: paths)
    return paths


def loosened(record: dict[str, Any]) -> dict[str, Any]:
    record["families"]["language"]["good"]["float32"]["value"] = 0.03125
    return record


def calibrate(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("fastkernels.cli.calibrate.measure", lambda *given: record)
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", "language", *words])
    return int(ended.value.code or 0)


def raise_version(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (manifests, release, versions):
        monkeypatch.setattr(module, "MANIFEST_VERSION", NEXT)
    monkeypatch.setattr(versions, "DRAFT", f"{NEXT}-draft")


def test_the_shipped_thresholds_are_those_that_its_version_always_had() -> None:
    body = json.loads(MANIFEST_PATH.read_text())
    thresholds = {name: [family["good"], family["bad"]] for name, family in body["families"].items()}
    text = json.dumps([body["tau"], thresholds], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == DIGESTS[MANIFEST_VERSION]


def test_a_changed_threshold_is_not_frozen_under_the_version_that_it_had(
    shipped: tuple[Path, Path],
    record: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = [path.read_bytes() for path in shipped]
    assert calibrate(loosened(record), monkeypatch, "--write", "--out", str(tmp_path / "out")) == UsageError.exit_code
    told = " ".join(capsys.readouterr().err.split())
    assert f"good of language in float32 from 0.015625 to 0.03125 would change under version {MANIFEST_VERSION}" in told
    assert f"Raise MANIFEST_VERSION ({MANIFEST_VERSION})" in told
    assert f"What was measured is in {tmp_path / 'out'}." in told
    assert [path.read_bytes() for path in shipped] == before
    assert json.loads((tmp_path / "out" / "calibration.json").read_text())["families"] == record["families"]


def test_once_the_version_is_raised_it_is_frozen_and_the_other_families_go_on(
    shipped: tuple[Path, Path], record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = load_manifest()
    raise_version(monkeypatch)
    assert calibrate(loosened(record), monkeypatch, "--write", "--out", str(tmp_path / "out")) == 0
    new = load_manifest(shipped[0], NEXT)
    assert new.thresholds("language", "float32").good == 0.03125
    assert {n: f for n, f in new.families.items() if n != "language"} == {
        n: f for n, f in old.families.items() if n != "language"
    }
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["version"] == NEXT


def test_the_same_thresholds_measured_again_keep_the_version(
    shipped: tuple[Path, Path], record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record["families"]["language"]["created"] = "2026-12-01T00:00:00+00:00"
    assert calibrate(record, monkeypatch, "--write", "--out", str(tmp_path / "out")) == 0
    found = load_manifest(shipped[0])
    assert found.families["language"].provenance["created"] == "2026-12-01T00:00:00+00:00"
    assert found.sha256 != load_manifest().sha256


def test_other_thresholds_beside_the_shipped_ones_are_a_draft(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(loosened(record), monkeypatch, "--out", str(tmp_path)) == 0
    assert f"It is {versions.DRAFT}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=f"of version '{versions.DRAFT}'; this program reads '{MANIFEST_VERSION}'"):
        load_manifest(tmp_path / "manifest.json")
    assert calibrate(record, monkeypatch, "--out", str(tmp_path)) == 0  # a draft can be added to


def test_what_was_not_calibrated_before_may_join_a_version_and_nothing_may_leave(record: dict[str, Any]) -> None:
    old = load_manifest()
    families = {name: release.manifest_entry(one) for name, one in record["families"].items()}
    gone = versions.changed_thresholds(old, old.tau, families)
    assert f"bad of image from {old.families['image'].bad:.6g} to none" in gone
    assert not [change for change in gone if "language" in change]
    families["language"]["good"]["float8_e4m3fn"] = 0.1
    assert versions.changed_thresholds(old, old.tau, families) == gone
    assert versions.changed_thresholds(old, 0.9, families) == ["tau from 1 to 0.9", *gone]


@pytest.mark.parametrize("version", ["2027.1", "2026.12", "2026.11-mine", "", "draft"])
def test_a_manifest_of_a_later_or_an_unknown_version_is_not_added_to(tmp_path: Path, version: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(MANIFEST_PATH.read_text()), "version": version}))
    with pytest.raises(InputFileError, match=f"of version '{version}'"):
        versions.read_before(path)
