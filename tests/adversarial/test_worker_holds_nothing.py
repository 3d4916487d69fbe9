"""From inside a worker: there is nothing that tampering with its memory, files or descriptors could reach.

This stands for the cheats that patch native code, scan the heap, trace processes or trap signals.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from fastkernels import harness
from fastkernels.adversarial.self_test import LIMITS
from fastkernels.harness.judge import Judge, JudgeConfig
from fastkernels.harness.records import OpRecord
from fastkernels.harness.workers import Nursery
from fastkernels.registry import ops
from fastkernels.sets import resolve_set

PROBE = Path(__file__).with_name("probe.py")
CONFIG = JudgeConfig(num_shapes=2, is_timed=False)


def judge_text(text: str, folder: Path, nursery: Nursery) -> OpRecord:
    (folder / "L1").mkdir(parents=True)
    (folder / "L1" / "rms_norm.py").write_text(text)
    return Judge(CONFIG, nursery).judge(ops()["rms_norm"], resolve_set(folder), [])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the probe reported, with the record of its judgement."""
    run = tmp_path_factory.mktemp("run")
    (run / "results.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as listener, Nursery("cpu", LIMITS) as nursery:
        places = {
            "judge": os.getpid(),
            "run": str(run),
            "harness": str(Path(harness.__file__).parent),
            "port": listener.getsockname()[1],
        }
        text = PROBE.read_text().replace("PLACES: dict[str, Any] = {}", f"PLACES: dict[str, Any] = {places!r}")
        record = judge_text(text, tmp_path_factory.mktemp("probe") / "set", nursery)
    assert record.verdict == "RUNTIME_ERROR", record.message
    report = record.message.rpartition("<<")[2].rpartition(">>")[0]
    assert report, record.message
    return {**json.loads(report), "record": record}


def test_no_expected_answer_is_in_a_worker(found: dict[str, Any]) -> None:
    assert found["expected"] == {"tensors": 0, "bytes": 0}


def test_no_secret_is_in_a_worker(found: dict[str, Any]) -> None:
    """Neither the seed nor a word of it in variables, environment or arguments; no tolerance, plan or verdict."""
    seed = found["record"].seed
    assert seed > 1 << 40
    assert seed not in found["integers"]
    assert str(seed) not in json.dumps({k: v for k, v in found.items() if k != "record"})
    names = ("seed", "expected", "expectation", "tolerance", "verdict", "is_fetched", "variation")
    assert not [name for name in found["local names"] if name in names]


def test_no_part_of_the_judge_is_loaded_in_a_worker(found: dict[str, Any]) -> None:
    parts = (
        "judge",
        "checks",
        "compare",
        "expect",
        "groups",
        "inputs",
        "nulls",
        "side",
        "timing",
        "tolerance",
        "workers",
    )
    assert not [name for name in found["modules"] if name in {f"fastkernels.harness.{part}" for part in parts}]
    kinds = {
        "Judge",
        "JudgeConfig",
        "Tolerance",
        "Expectation",
        "Expected",
        "Rejection",
        "Nursery",
        "OpRecord",
        "Protocol",
    }
    assert not kinds & set(found["kinds"])


def test_no_clock_of_the_judge_is_in_a_worker(found: dict[str, Any]) -> None:
    assert found["clocks"] == []


def test_the_environment_is_bare(found: dict[str, Any]) -> None:
    allowed = {
        "PATH",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "LD_LIBRARY_PATH",
        "CUDA_VISIBLE_DEVICES",
        "CUDA_DEVICE_ORDER",
        "CUDA_HOME",
        "HOME",
        "TMPDIR",
    }
    threads = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "KINETO_LOG_LEVEL"}
    rest = set(found["environment"]) - allowed - threads
    assert all("CACHE" in name or name.startswith(("TORCH", "TRITON", "CUDA", "KMP", "PYTORCH")) for name in rest), rest
    assert "pytest" not in json.dumps(found["environment"]) + found["command line"] + " ".join(found["arguments"])


def test_descriptors_lead_nowhere(found: dict[str, Any]) -> None:
    """A socket to the judge, the shared memory of inputs and answers, the log; nothing else that can be written."""
    kinds = [d.partition(":")[0] if not d.startswith("/") else d for d in found["descriptors"]]
    others = [d for d in kinds if not (d == "socket" or d.startswith(("/memfd:fastkernels", "/dev/null", "/proc/")))]
    assert all(d.endswith(".log") or d.startswith(("pipe", "anon_inode")) for d in others), others
    assert kinds.count("socket") <= 2


def test_files_of_the_judge_are_out_of_reach(found: dict[str, Any]) -> None:
    files = found["files"]
    refused = ("tolerances", "judge source", "run folder", "run folder listing", "write package", "write own file")
    assert {name: files[name] for name in refused} == dict.fromkeys(refused, "PermissionError")
    assert files["write /dev/shm"] == files["write /tmp"] == "PermissionError"


def test_the_judge_can_be_neither_seen_nor_traced(found: dict[str, Any]) -> None:
    files = found["files"]
    assert found["processes"] == [found["own process"]]
    assert files["judge memory"] == files["judge environment"] == "FileNotFoundError"
    assert files["parent memory"] in ("FileNotFoundError", "PermissionError")
    assert files["signal the judge"] == "ProcessLookupError"


def test_no_network_is_reachable(found: dict[str, Any]) -> None:
    assert found["network"]["route"] == "OSError"
    assert found["network"]["loopback"] in ("OSError", "ConnectionRefusedError")


def test_a_worker_has_no_capability(found: dict[str, Any]) -> None:
    lines = dict(line.split(":\t") for line in found["capabilities"])
    assert int(lines["CapEff"], 16) == 0
    assert lines["NoNewPrivs"] == "1"
    assert all(found["record"].confinement[name] for name in ("network_namespace", "process_namespace", "landlock"))


DAEMON = """
import os
import time

import torch
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                if os.fork():
                    os._exit(0)
                time.sleep(600)
                os._exit(0)

    def forward(self, x, residual=None):
        return x
"""


def test_nothing_outlives_a_judgement(tmp_path: Path) -> None:
    """Processes of double forks in sessions of their own, shared memory and folders: all gone."""
    shared = sorted(os.listdir("/dev/shm"))
    with Nursery("cpu", LIMITS) as nursery:
        folder = nursery._folder
        record = judge_text(DAEMON, tmp_path / "set", nursery)
        assert record.verdict != "PASSED"
        left = _descendants(nursery._process.pid)
        assert [p.pid for p in left] == []
        assert [path for path in folder.iterdir() if path.is_dir()] == []
    assert not folder.exists()
    assert sorted(os.listdir("/dev/shm")) == shared


def _descendants(pid: int) -> list[psutil.Process]:
    """Those that still run; a moment is given to the ones being reaped."""
    deadline = time.monotonic() + 2
    while True:
        running = [p for p in psutil.Process(pid).children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
        if not running or time.monotonic() > deadline:
            return running
        time.sleep(0.02)
