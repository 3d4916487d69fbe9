"""What is measured of a production path, what that costs, and what is left of it when it is cut short."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastkernels.errors import EXIT_INTERRUPTED, InputFileError, UsageError
from fastkernels.harness import calibrate, expect, measurements
from fastkernels.harness.calibrate import Measured, measure_op
from fastkernels.harness.tolerance import Error
from fastkernels.registry import ops

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def rows_of(found: Measured) -> dict[tuple[str, str, str], Error]:
    return {(d, f, o): error for d, families in found.items() for f, os in families.items() for o, error in os.items()}


def test_ill_conditioned_rows_are_looked_for_only_where_an_error_is_not_small_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_looked, noise = [], expect._noise
    monkeypatch.setattr(expect, "NUM_NOISE_DRAWS", 2)
    monkeypatch.setattr(expect, "_noise", lambda *given: (num_looked.append(1), noise(*given))[1])
    entry = ops()["flash_attn_prefill"]
    found = rows_of(measure_op(entry, CPU, 2, seed=1))
    num_in_full = len(num_looked)
    num_looked.clear()
    limit = 1e-5
    quick = rows_of(measure_op(entry, CPU, 2, seed=1, is_enough=lambda *given: given[-1].row <= limit))
    assert 0 < len(num_looked) < num_in_full
    assert quick.keys() == found.keys()
    assert any(found[key].row > limit for key in found)
    assert all(max(quick[key].row, limit) == max(found[key].row, limit) for key in found)
    num_looked.clear()
    measure_op(entry, CPU, 2, seed=1, is_enough=lambda *_: True)
    assert not num_looked


def test_definition_is_on_the_cpu_whatever_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a production path that only claims to be on a GPU."""
    build, answers, asked = calibrate.build_reference, calibrate.answers_of, []

    def build_here(*given: Any) -> torch.nn.Module:
        asked.append(given[-1])
        return build(*given[:-1], CPU)

    monkeypatch.setattr(calibrate, "build_reference", build_here)
    monkeypatch.setattr(calibrate, "answers_of", lambda op, case, expected, _: answers(op, case, expected, CPU))
    found = measure_op(ops()["rms_norm"], GPU, 2, seed=1)
    assert set(asked) == {GPU}
    monkeypatch.undo()
    assert found == measure_op(ops()["rms_norm"], CPU, 2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ops_that_were_measured_before_a_signal_are_on_file(tmp_path: Path, sent: signal.Signals) -> None:
    words = ["--shapes", "24", "--out", str(tmp_path), "--ops", "euler_step", "flash_attn_prefill"]  # a minute
    command = [sys.executable, "-m", "fastkernels.harness.calibrate", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL) as p:
        assert p.stdout is not None
        told = p.stdout.readline()
        p.send_signal(sent)
        rest = p.stdout.read()
    assert told.startswith("1 of 2: euler_step, ")
    assert " s, " in told
    assert not rest
    assert p.returncode == (EXIT_INTERRUPTED if sent == signal.SIGINT else -sent)
    assert [path.name for path in tmp_path.iterdir()] == ["euler_step.json"]
    assert json.loads((tmp_path / "euler_step.json").read_text())["errors"]["float32"]


def test_a_file_is_never_seen_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "op.json"
    record: dict[str, Any] = {"errors": {"float32": {"normal": {"y": {"row": 1.0}}}}, "measurements": [], "notes": []}
    calibrate.write_record(path, record)

    def is_cut_short(self: Path, text: str) -> int:
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", is_cut_short)
    with pytest.raises(KeyboardInterrupt):
        calibrate.write_record(path, {**record, "notes": ["again"]})
    assert calibrate.read_record(path) == record
    assert [p.name for p in tmp_path.glob("*.json")] == ["op.json"]


WHOLE: dict[str, Any] = {"errors": {"float32": {"normal": {"y": {"row": 1e-7}}}}, "measurements": [], "notes": []}


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["calibrate", *words])
    with pytest.raises(SystemExit) as ended:
        calibrate.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"errors": {', "is cut off or altered"),
        ("[]", "it is not a JSON object"),
        (json.dumps({"a": 1}), "it lacks errors"),
        (json.dumps({**WHOLE, "errors": {"float33": {}}}), "errors.float33 is of no dtype"),
        (json.dumps({**WHOLE, "errors": {"float32": 3}}), "errors.float32 is 3, not an object"),
        (json.dumps({**WHOLE, "errors": {"float32": {"normal": {"y": {"row": "no"}}}}}), "y.row is 'no', not a finite"),
        (json.dumps({**WHOLE, "errors": {"float32": {"normal": {"y": {"row": -1}}}}}), "y.row is -1, not a finite"),
        (json.dumps({**WHOLE, "errors": {"float32": {"normal": {"y": {"rwo": 1}}}}}), "y.rwo is none of element, row"),
        (json.dumps({**WHOLE, "notes": "none"}), "notes is 'none', not a list"),
    ],
)
def test_a_damaged_file_is_named_before_another_is_merged_or_an_op_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str, says: str
) -> None:
    """The whole one would be merged first."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    calibrate.write_record(theirs / "rms_norm.json", WHOLE)
    damaged = theirs / "silu.json"
    damaged.write_text(content)
    monkeypatch.setattr(calibrate, "FOLDER", ours)
    monkeypatch.setattr(calibrate, "measure_op", None)
    for words in (["--merge", str(theirs)], ["--ops", "rms_norm", "silu", "--out", str(theirs)]):
        assert run_main(monkeypatch, *words) == InputFileError.exit_code
        told = " ".join(capsys.readouterr().err.split())
        assert str(damaged) in told
        assert says in told
        assert not ours.exists()
        assert damaged.read_text() == content


def test_a_place_that_is_no_folder_is_refused_before_an_op_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(calibrate, "measure_op", None)
    assert run_main(monkeypatch, "--ops", "rms_norm", "--out", str(tmp_path / "taken")) == UsageError.exit_code
    assert "taken cannot be used: a file is there" in " ".join(capsys.readouterr().err.split())


def test_the_records_of_the_project_are_whole() -> None:
    for path in sorted(measurements.FOLDER.glob("*.json")):
        assert not measurements.record_fault(json.loads(path.read_text())), path


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--ops", "rms_nrm"), 2, "There is no op named 'rms_nrm'. Did you mean rms_norm"),
        (("--ops", "rms_norm", "--shapes", "0"), 2, "--shapes is 0; the least is 1."),
        (("--merge", "nowhere"), 2, "--merge nowhere: there is no such folder."),
        (("--merge", "."), 2, "it holds no <op>.json"),
        (("--merge", "wrong"), 2, "There is no op named 'rms_nrm'"),
        (("--ops", "rms_norm", "--device", "cuda"), 5, "no GPU is visible to torch here"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "rms_nrm.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(calibrate, "FOLDER", tmp_path / "measured")
    monkeypatch.setattr(sys, "argv", ["calibrate", *words, "--out", str(tmp_path / "measured")])
    with pytest.raises(SystemExit) as ended:
        calibrate.main()
    assert ended.value.code == code
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "measured").exists()
