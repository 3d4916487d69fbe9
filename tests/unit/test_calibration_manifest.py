"""The shipped manifest follows from the samples in the project."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastkernels import registry
from fastkernels.calibration import plan, release
from fastkernels.calibration.calibrate import DISCREPANCIES
from fastkernels.calibration.cliff import Chance, Curve
from fastkernels.calibration.curve import find_knee
from fastkernels.calibration.noise import NoiseSample
from fastkernels.calibration.thresholds import find_thresholds
from fastkernels.errors import InputFileError
from fastkernels.scoring.items import Family
from fastkernels.scoring.manifest import MANIFEST_PATH, load_manifest

ROOT = Path(__file__).resolve().parents[2]


def test_the_shipped_manifest_has_every_family_and_dtype() -> None:
    manifest = load_manifest()
    assert set(manifest.families) == set(plan.families()) == {a.family for a in registry.ARCHITECTURES}
    for name, entry in manifest.families.items():
        assert set(entry.good) == {"float32", "bfloat16", "float16"}, name
        assert entry.margin == 2
        assert all(2 * good <= entry.bad * 1.00001 for good in entry.good.values()), name
        assert entry.discrepancy == DISCREPANCIES[Family(name)]
        assert entry.provenance["command"].startswith("fastkernels calibrate ")


def test_the_shipped_manifest_follows_from_the_samples_in_the_project() -> None:
    record = json.loads((ROOT / release.SAMPLES).read_text())
    body = json.loads(MANIFEST_PATH.read_text())
    assert body["families"] == {name: release.manifest_entry(one) for name, one in record["families"].items()}
    for name, one in record["families"].items():
        samples = [
            NoiseSample(s["model"], s["dtype"], s["variant"], tuple(s["values"]), {}, s["floor"]) for s in one["noise"]
        ]
        curves = []
        for c in one["curves"]:
            knee = find_knee([p["discrepancy"] for p in c["points"]], [p["retained"] for p in c["points"]])
            assert (knee is None) == (c["knee"] is None), c["damage"]
            curves.append(Curve(c["model"], c["damage"], c["measure"], c["quality"], c["chance"], (), 0, knee))
        chances = [Chance(**chance) for chance in one["random_answers"]]
        found = find_thresholds(Family(name), samples, curves, chances)
        assert found.bad.value == pytest.approx(body["families"][name]["bad"], rel=1e-5)
        assert {d: g.value for d, g in found.good.items()} == pytest.approx(body["families"][name]["good"], rel=1e-5)
        for model, num in plan.noise_models(Family(name)).items():
            together = [s for s in one["noise"] if s["model"] == model and s["variant"] == "again"]
            assert {len(s["values"]) for s in together} <= {num, 1}, model
        planned = [(m.name, t.damage.name, len(t.severities)) for m in plan.DAMAGED[Family(name)] for t in m.troubles]
        assert planned == [(c["model"], c["damage"], len(c["points"]) + c["num_failed"]) for c in one["curves"]]
    text = (ROOT / release.SAMPLES).read_text()
    assert not re.search(r"host|(?<![\w.])/\w", text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b["families"]["image"].update(bad=0.0), "family 'image' in"),
        (lambda b: b["families"]["image"].pop("provenance"), "family 'image' has the keys"),
        (lambda b: b.update(version="2027.1"), "is of version '2027.1'"),
    ],
)
def test_a_tampered_manifest_is_refused_and_not_written_over(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    body = json.loads(MANIFEST_PATH.read_text())
    change(body)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(body))
    with pytest.raises(ValueError, match=message):
        load_manifest(path)
    with pytest.raises(InputFileError, match="Nothing was written"):
        release.write_manifest({"families": {}}, path)
    assert json.loads(path.read_text()) == body
