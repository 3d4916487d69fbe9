"""The demonstration, as `make demo` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timed
def test_demo_passes_the_right_kernel_alone_and_leaves_a_report(tmp_path: Path) -> None:
    out = tmp_path / "run"
    environment = {**os.environ, "FASTKERNELS_HOME": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fastkernels", "demo", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((out / "results.json").read_text())
    verdicts = {record["implementation"]: record["verdict"] for record in results["ops"]}
    assert verdicts == {
        "faster": "PASSED",
        "wrong_in_last_tile": "INCORRECT_NUMERICAL",
        "caches_by_content": "INCORRECT_NUMERICAL",
    }
    served = {row["set"]: row for row in results["served"]}
    assert served["faster"]["num_same_tokens"] == served["faster"]["num_tokens"] == 1024
    assert served["caches_by_content"]["num_same_tokens"] < 1024
    assert {r["status"] for row in results["served"] for r in row["replacements"]} == {"REPLACED"}
    assert all(r["num_calls"] == 160 for row in results["served"] for r in row["replacements"])
    assert (out / "report.html").stat().st_size > 100_000
    assert str(out / "report.html") in done.stdout.replace("\n", "")
