"""`fastkernels kernels` as a user meets it: exit codes, one message each, what is on disk, what is left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from commands import called
from judging import bench, one_nursery, rms_norm, wait_until, write_set

from fastkernels.bench.run_folder import RunFolder
from fastkernels.bench.sweep import require_device
from fastkernels.capture.case import Case
from fastkernels.capture.store import CaseSet
from fastkernels.cli.kernels import _config, _warnings
from fastkernels.errors import EnvironmentProblem
from fastkernels.harness.groups import drawn_dtypes
from fastkernels.registry import ops

__all__ = ["bench", "one_nursery"]

RIGHT = rms_norm("return self.right(x, residual)")
Here = Callable[..., tuple[int, str, str]]
QUICK = ("--device", "cpu", "--quick", "--check-only", "--no-track")


def command(folder: Path, *words: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "FASTKERNELS_HOME": str(folder / "runs"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment["FASTKERNELS_CANDIDATE_DIR"] = str(folder / "candidate")
    (folder / "candidate").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "fastkernels", "kernels", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """(exit code, stdout, stderr) of the command in this process."""
    monkeypatch.setenv("FASTKERNELS_HOME", str(tmp_path / "runs"))
    monkeypatch.setenv("FASTKERNELS_CANDIDATE_DIR", str(tmp_path / "candidate"))
    (tmp_path / "candidate").mkdir()
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        done = called(capsys, "kernels", *words)
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.mark.usefixtures("one_nursery")
def test_right_and_wrong_candidates_give_0_and_1_and_json(here: Here, tmp_path: Path) -> None:
    mine = write_set(tmp_path / "mine", "rms_norm", RIGHT)
    code, out, err = here("--target", "RMSNorm", "--target", "gelu", "--candidates", mine, *QUICK, "--json")
    assert code == 0, err
    assert "1 of 1: rms_norm (mine) PASSED" in err  # lines in place of a bar
    assert "Not judged, because no set has them: gelu." in err
    results = json.loads(out)
    assert [(r["op"], r["implementation"], r["verdict"]) for r in results["ops"]] == [("rms_norm", "mine", "PASSED")]
    (path,) = (tmp_path / "runs").iterdir()
    assert {p.name for p in path.iterdir()} >= {"run.json", "results.json", "report.html", "ops"}
    assert RunFolder(path).results() == results
    assert results["environment"]["packages"]["torch"] == torch.__version__

    write_set(mine, "rms_norm", rms_norm("y, h = self.right(x, residual); return y * 1.01, h"))
    code, out, _ = here("--resume", path.name)  # by its name, in its own words
    assert code == 1
    assert "INCORRECT_NUMERICAL" in out
    assert f"run:    {path}" in out
    assert [r["verdict"] for r in RunFolder(path).results()["ops"]] == ["INCORRECT_NUMERICAL"]


def test_protections_that_are_not_in_force_are_told() -> None:
    held = {"network_namespace": True, "landlock": True, "user_id": 0}
    records = [{"op": "a", "confinement": held}, {"op": "b", "confinement": {}}]
    assert _warnings({"ops": records}, []) == []
    records.append({"op": "c", "confinement": {**held, "landlock": False, "network_namespace": False}})
    (told,) = _warnings({"ops": records}, [])
    assert told.startswith("This machine does not grant workers: landlock, network namespace. ")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--target", "rms_nrm"), 2, "There is no op named 'rms_nrm'. Did you mean rms_norm"),
        (("--target", "rms_norm"), 2, "Write one with `fastkernels stubs --target OP`"),
        (("--candidates", "no_such_set"), 2, "no_such_set"),
        (("--candidates", "./no/such/dir"), 2, "There is no directory './no/such/dir'"),
        (("--level", "7"), 2, "There is no level 7"),
        (("--candidates", "reference", "--dtype", "int8"), 2, "--dtype int8 is not one of"),
        (("--candidates", "reference", "--cases", "no_such_cases"), 3, "no_such_cases"),
        (
            ("--candidates", "reference", "--device", "cpu", "--resume", "no_such_run"),
            3,
            "There is no run folder no_such_run",
        ),
        (("--candidates", "reference", "--device", "cpu", "--resume", __file__), 3, "is a file; a run is a folder"),
        (("--candidates", "reference", "--device", "cpu", "--out", __file__), 2, "a part of the path is a file"),
        (("--candidates", "reference", "--device", "cpu", "--out", f"{__file__}/x"), 2, "a part of the path is a file"),
        (("--candidates", "reference", "--device", "gpu"), 2, "--device gpu is not cpu or cuda"),
        (("--candidates", "reference", "--device", "cuda:1"), 2, "which GPU is used, CUDA_VISIBLE_DEVICES says"),
        (("--self-test", "--device", "cuda:x"), 2, "which GPU is used, CUDA_VISIBLE_DEVICES says"),
        (("--self-test", "--json", "--device", "cpu"), 2, "it does not take --json. Beside it stand --device, --out"),
        (("--self-test", "--candidates", "mine", "--cases", "x"), 2, "it does not take --candidates, --cases."),
        (("--self-test", "--resume", "x", "--dtype", "float16"), 2, "it does not take --dtype, --resume."),
        (("--self-test", "--timeout", "5", "--quick", "--level", "1"), 2, "not take --level, --quick, --timeout."),
        (("--candidates", "reference", "--timeout", "0"), 2, "--timeout is 0; it is above 0 and at most 86400"),
        (("--candidates", "reference", "--timeout", "nan"), 2, "--timeout is nan"),
        (("--candidates", "reference", "--memory-gb", "inf"), 2, "--memory-gb is inf; it is above 0 and at most"),
    ],
)
def test_mistake_is_one_message_and_its_exit_code(
    here: Here, tmp_path: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    got, out, err = here(*words)
    assert (got, out) == (code, "")
    assert err.startswith("error: ")
    assert says in err
    assert err.count("error:") == 1
    assert not (tmp_path / "runs").exists()


def test_dtype_left_out_is_the_ops_own_where_it_takes_no_other() -> None:
    config = _config("cuda", None, quick=True, is_timed=False)
    for name, dtype in (("rms_norm", torch.bfloat16), ("gaussian_projection", torch.float32)):
        assert drawn_dtypes(ops()[name], config.dtypes, takes_others=config.takes_others) == [dtype]
    config = _config("cuda", ["bfloat16"], quick=True, is_timed=False)
    assert drawn_dtypes(ops()["gaussian_projection"], config.dtypes, takes_others=config.takes_others) == []


REFERENCE = ("--target", "rms_norm", "--candidates", "reference", "--device", "cpu")
WORDS = {
    **{
        "level": None,
        "architecture": None,
        "target": ["rms_norm"],
        "candidates": ["reference"],
        "device": "cpu",
        "dtype": None,
        "cases": None,
    },
    **{"quick": False, "check_only": False, "timeout": 30.0, "memory_gb": 16.0},
}


@pytest.mark.parametrize("kind", ["kernels", "eval", "e2e"])
def test_folder_of_a_run_is_written_by_no_other(here: Here, tmp_path: Path, kind: str) -> None:
    """Not by --out, of any kind, nor by --resume of another kind."""
    run = tmp_path / "run"
    RunFolder.create(kind, WORDS, {}, run).finish(status="finished", items=["kept"])
    before = (run / "run.json").read_bytes(), (run / "results.json").read_bytes()
    code, _, err = here(*REFERENCE, "--out", run)
    assert code == 2
    go_on = f"go on with it by --resume {run}, or " if kind == "kernels" else ""
    assert f"{run} holds a run already; {go_on}name another folder." in err
    if kind != "kernels":
        code, _, err = here(*REFERENCE, "--resume", run)
        assert code == 3
        assert f"is a run of kind {kind!r}; only a run of kind 'kernels' is gone on with" in err
    assert ((run / "run.json").read_bytes(), (run / "results.json").read_bytes()) == before


@pytest.mark.parametrize(
    ("changed", "words", "says"),
    [
        ({}, ("--check-only",), "started with no --check-only; it cannot go on with --check-only"),
        ({}, ("--quick",), "started with no --quick; it cannot go on with --quick"),
        ({"device": "cuda"}, (), "started with --device cuda; it cannot go on with --device cpu"),
        (
            {"dtype": ["float32", "bfloat16"]},
            ("--dtype", "float16"),
            "--dtype float32 --dtype bfloat16; it cannot go on with --dtype float16",
        ),
        ({}, ("--timeout", "5"), "started with --timeout 30.0; it cannot go on with --timeout 5.0"),
        ({}, ("--out", "new"), "--out names a new run folder and --resume one that is there"),
    ],
)
def test_run_goes_on_only_with_the_words_that_it_was_judged_by(
    here: Here, tmp_path: Path, changed: dict[str, object], words: tuple[str, ...], says: str
) -> None:
    RunFolder.create("kernels", {**WORDS, **changed}, {}, tmp_path / "run")
    code, _, err = here(*REFERENCE, "--resume", tmp_path / "run", *words)
    assert code == 2
    assert says in err
    assert not (tmp_path / "run" / "results.json").exists()


def test_run_that_does_not_say_how_it_was_started_is_not_gone_on_with(here: Here, tmp_path: Path) -> None:
    RunFolder.create("kernels", {"target": ["rms_norm"]}, {}, tmp_path / "run")
    code, _, err = here("--resume", tmp_path / "run")
    assert code == 3
    assert "its run.json does not say level, architecture, candidates, cases, device" in err


def test_case_set_that_is_cut_off_is_named(here: Here, tmp_path: Path) -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    case = Case("rms_norm", {"hidden_size": 64}, {"x": x, "residual": None}, {"weight": torch.ones(64)})
    CaseSet([case]).save(tmp_path / "cases")
    (tensors,) = (tmp_path / "cases").glob("tensors-*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-100])
    code, _, err = here("--candidates", "reference", *QUICK, "--cases", tmp_path / "cases")
    assert code == 3
    assert tensors.name in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_exit_5(here: Here, tmp_path: Path) -> None:
    code, out, err = here("--target", "rms_norm", "--candidates", "torch_native", "--device", "cuda")
    assert (code, out) == (5, "")
    assert "no GPU is visible to torch here. Use --device cpu." in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("device", ["cuda:2", "cuda:x"])
def test_gpu_of_a_number_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    require_device("cuda:1")
    with pytest.raises(EnvironmentProblem, match=f"--device {device} is not one of the 2 that torch sees"):
        require_device(device)


def _with_endless_op(folder: Path) -> Path:
    """rms_norm is right; silu_and_mul, judged after it, never answers."""
    mine = write_set(folder / "mine", "rms_norm", RIGHT)
    source = (
        "from torch import nn\n\nclass SiluAndMul(nn.Module):\n    def forward(self, x):\n        while True: pass\n"
    )
    return write_set(mine, "silu_and_mul", source)


def _reaches_endless_op(folder: Path) -> bool:
    return bool(list((folder / "runs").glob("*/ops/*rms_norm.json")))


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=["interrupted", "killed"])
def test_signal_in_the_middle_keeps_what_was_finished_and_leaves_no_process(
    tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    process = command(tmp_path, "--candidates", _with_endless_op(tmp_path), *QUICK, "--timeout", "100")
    assert wait_until(lambda: _reaches_endless_op(tmp_path), 60)
    time.sleep(1.0)
    below = psutil.Process(process.pid).children(recursive=True)
    assert below
    started = time.monotonic()
    process.send_signal(sent)
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - started < 8
    assert process.returncode == code
    _, alive = psutil.wait_procs(below, timeout=5)
    assert not alive
    (path,) = (tmp_path / "runs").iterdir()
    results = RunFolder(path).results()
    assert results["status"] == ("interrupted" if sent == signal.SIGINT else "unfinished")
    assert [(r["op"], r["verdict"]) for r in results["ops"]] == [("rms_norm", "PASSED")]
    assert not list(path.rglob("*.partial"))
    if sent == signal.SIGINT:
        assert err.count("error:") == 1
        assert "Interrupted. What was written before is kept." in err


@pytest.mark.usefixtures("one_nursery")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
def test_full_disk_is_one_message_and_no_partial_file(here: Here, tmp_path: Path) -> None:
    """A judgement holds more bytes than the disk has left: the header is written, the judgement is not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        mine = write_set(tmp_path / "mine", "rms_norm", RIGHT)
        code, _, err = here("--candidates", mine, *QUICK, "--out", disk / "run")
        assert code == 5, err
        assert err.count("error:") == 1
        assert "The disk is full" in err
        assert {p.name for p in (disk / "run").rglob("*")} <= {"run.json", "ops", "results.json"}
        assert RunFolder(disk / "run").results()["status"] in ("unfinished", "interrupted")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
