"""`fastkernels capture`: the set that it writes, and what it says of a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import called

from fastkernels.capture.store import CaseSet


def test_capture_command_writes_a_set_and_a_summary(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastkernels", "capture", "--model", "tiny-llama", "--workload", "single"]
    command += ["--scale", "0.1", "--ops", "rms_norm,silu_and_mul", "--device", "cpu", "--json"]
    done = subprocess.run([*command, "--out", str(tmp_path / "set")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {(row["op"], row["phase"]) for row in rows} == {
        (op, phase) for op in ("rms_norm", "silu_and_mul") for phase in ("prefill", "decode")
    }
    assert len(CaseSet.load(tmp_path / "set")) == sum(row["cases"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "tiny-llama", "--ops", "rms_nrm"], 2, "Did you mean"),
        (["--model", "tiny-llama", "--workload", "dmo"], 2, "Did you mean demo"),
        (["--model", "tiny-llama", "--workload", "balanced"], 4, "max_model_len is 512"),
        (["--model", "tiny-llama", "--keep", "0"], 2, "--keep is 0"),
        (
            ["--model", "tiny-llama", "--workload", "single", "--scale", "0.1", "--ops", "conv2d", "--device", "cpu"],
            2,
            "called none of conv2d: there is nothing to write to",
        ),
    ],
)
def test_capture_command_says_what_is_wrong(
    tmp_path: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = called(capsys, "capture", *arguments, "--out", tmp_path / "set")
    assert done.returncode == code
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "set").exists()


def test_capture_command_refuses_a_file_before_the_model_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set").write_text("")
    done = called(capsys, "capture", "--model", "no-such-model", "--out", tmp_path / "set")
    assert done.returncode == 2
    assert "set is a file; name a folder" in done.stderr.replace("\n", "")


def test_capture_command_refuses_a_folder_of_other_files_before_the_model_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "of a web page"}')
    done = called(capsys, "capture", "--model", "no-such-model", "--out", tmp_path)
    assert done.returncode == 2
    assert "holds manifest.json, which is no part of a case set" in done.stderr.replace("\n", " ")
    assert (tmp_path / "manifest.json").read_text() == '{"name": "of a web page"}'


def test_an_interrupted_capture_keeps_the_calls_of_the_steps_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object, __: object, *, completed: int, total: int) -> None:
        if completed >= 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("fastkernels.cli.capture.Progress.update", interrupted)
    words = ("--model", "tiny-llama", "--workload", "single", "--scale", "0.1", "--ops", "rms_norm", "--device", "cpu")
    done = called(capsys, "capture", *words, "--out", tmp_path / "set")
    assert done.returncode == 130
    cases = CaseSet.load(tmp_path / "set")
    assert {case.phase for case in cases.records} == {"prefill", "decode"}
    assert f"set: {len(cases)} cases of the steps before." in done.stderr.replace("\n", "")
    assert "Interrupted. What was written before is kept." in done.stderr
