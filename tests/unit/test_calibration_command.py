"""Every family has a plan; the command and its errors."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
from judging import wait_until

from fastkernels import registry
from fastkernels.calibration import calibrate as calibration
from fastkernels.calibration import plan, release
from fastkernels.calibration.quality import QUALITIES
from fastkernels.calibration.versions import DRAFT
from fastkernels.cli import main
from fastkernels.errors import CheckpointError, InputFileError, UnknownNameError
from fastkernels.report.calibration_page import render_calibration
from fastkernels.scoring.items import Family
from fastkernels.scoring.manifest import MANIFEST_VERSION, load_manifest

FAMILIES = [Family(name) for name in plan.families()]


def test_every_registered_family_has_a_plan_and_every_architecture_a_model() -> None:
    assert set(FAMILIES) == set(plan.DAMAGED) == set(QUALITIES)
    models = {name for family in FAMILIES for name in plan.noise_models(family)}
    assert {f"tiny-{a.name}" for a in registry.ARCHITECTURES} <= models
    for of_family in plan.DAMAGED.values():
        for model in of_family:
            for trouble in model.troubles:
                assert 8 <= len(trouble.severities) <= 14
                assert list(trouble.severities) == sorted(trouble.severities)


def test_a_missing_checkpoint_says_what_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "shipped_checkpoints", lambda: {"trained-llama": Path()})
    with pytest.raises(
        CheckpointError, match=r"trained-mixtral, trained-mamba2 are not among .* \(trained-llama\)"
    ) as e:
        plan.require_checkpoints([Family.LANGUAGE])
    assert "python examples/train_tiny.py --model trained-mamba2 --out fastkernels/checkpoints/" in str(e.value)
    with pytest.raises(CheckpointError, match=r"trained-digits is not .* python examples/train_digits\.py --out"):
        plan.require_checkpoints([Family.IMAGE, Family.CLASSIFICATION])


@pytest.mark.parametrize(
    ("name", "hint"), [("langage", "Did you mean language"), ("points", "Known: all, classification")]
)
def test_an_unknown_family_is_refused(name: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownNameError, match=re.escape(hint)):
        plan.chosen_families(name)
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", name])
    assert stopped.value.code == 2
    assert hint in " ".join(capsys.readouterr().err.split())


def test_an_installed_package_cannot_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(release, "_ROOT", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", "ranking", "--write"])
    assert stopped.value.code == 2


def test_a_seed_below_0_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastkernels.cli.calibrate.measure", None)
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", "ranking", "--seed", "-1"])
    assert stopped.value.code == 2
    assert "--seed is -1; the least is 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "says"), [("calibration.json", "holds no samples"), ("manifest.json", "Nothing was written")]
)
def test_a_folder_that_cannot_be_added_to_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, says: str
) -> None:
    monkeypatch.setattr("fastkernels.cli.calibrate.measure", None)
    (tmp_path / name).write_text("{")
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", "ranking", "--out", str(tmp_path)])
    assert stopped.value.code == InputFileError.exit_code
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda whole: [], "it is not a JSON object"),
        (lambda whole: {"families": []}, "families is [], not an object"),
        (lambda whole: {}, "lacks families"),
        (lambda whole: {"families": {"ranking": {}}}, "families.ranking lacks created, command"),
        (lambda whole: _of_ranking(whole, curves=[]), "families.ranking.curves is empty"),
        (lambda whole: _of_ranking(whole, bad={"value": 1e999}), "families.ranking.bad lacks decided_by, random"),
    ],
)
def test_samples_that_no_calibration_can_be_added_to_are_refused_before_anything_is_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Any], Any],
    says: str,
) -> None:
    monkeypatch.setattr("fastkernels.cli.calibrate.measure", None)
    whole = json.loads((Path(__file__).resolve().parents[2] / release.SAMPLES).read_text())
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(change(whole)))
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", "ranking", "--out", str(tmp_path)])
    assert stopped.value.code == InputFileError.exit_code
    told = " ".join(capsys.readouterr().err.split())
    assert f"{path} holds no samples of a calibration: {says}" in told


def _of_ranking(whole: Any, **changed: Any) -> Any:
    return {"families": {"ranking": {**whole["families"]["ranking"], **changed}}}


class AtOnce(Executor):
    def __init__(self, num: int, context: Any, begin: Callable[[], None]) -> None:
        super().__init__()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*args, **kwargs))
        return done


@pytest.mark.slow
def test_the_command_calibrates_a_family_and_keeps_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plan.DAMAGED, Family.RANKING, plan.DAMAGED[Family.RANKING][:1])  # type: ignore[misc]
    monkeypatch.setattr("fastkernels.calibration.calibrate.ProcessPoolExecutor", AtOnce)  # one process less to start
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", "ranking", "--out", str(tmp_path)])
    assert not stopped.value.code
    said = " ".join(capsys.readouterr().out.split())
    assert "ranking float32" in said
    assert "report.html" in said
    version = json.loads((tmp_path / "manifest.json").read_text())["version"]  # a draft's where this machine differs
    assert version in (MANIFEST_VERSION, DRAFT)
    entry, before = load_manifest(tmp_path / "manifest.json", version).families, load_manifest().families
    assert set(entry) == set(before)
    assert entry["language"] == before["language"]
    assert entry["ranking"].bad == pytest.approx(before["ranking"].bad, rel=0.2)
    assert entry["ranking"].good == pytest.approx(dict(before["ranking"].good), rel=0.2)
    record = json.loads((tmp_path / "calibration.json").read_text())
    page = render_calibration(record)
    plots = json.loads(re.search(r'id="plots">(.*?)</script>', page, re.DOTALL).group(1))  # type: ignore[union-attr]
    assert set(plots) == {"ranking-tiny-dlrmv2"}
    own = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?!#|data:)', own)
    assert "without tiny-lightgcn" in " ".join(own.split())


def test_what_is_measured_before_an_interrupt_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads((Path(__file__).resolve().parents[2] / release.SAMPLES).read_text())
    found = {name: whole["families"][name] for name in ("ranking", "image")}

    def measure(*given: Any) -> None:
        keep = given[-1]
        keep({**whole, "families": {"ranking": found["ranking"]}})
        keep({**whole, "families": found})
        raise KeyboardInterrupt

    monkeypatch.setattr("fastkernels.cli.calibrate.measure", measure)
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", "all", "--out", str(tmp_path)])
    assert stopped.value.code == 130
    path = tmp_path / "calibration.json"
    assert json.loads(path.read_text())["families"] == found
    told = " ".join(capsys.readouterr().err.split())
    assert f"2 of {len(FAMILIES)} families are in {path}; `fastkernels calibrate FAMILY --out {tmp_path}`" in told


def sleep(models: object, seconds: int) -> None:
    time.sleep(seconds)


def test_an_interrupt_waits_for_no_family_that_is_still_to_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a pool whose process sleeps."""
    monkeypatch.setattr(calibration, "noise_of_models", sleep)
    monkeypatch.setattr(calibration, "noise_models", lambda family: None)
    monkeypatch.setattr(calibration, "require_checkpoints", lambda families: None)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "_cliffs", interrupt)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        calibration.calibrate(FAMILIES, "calibrate all", 600)
    assert time.monotonic() - started < 60
    assert wait_until(lambda: not active_children(), 20)
