"""Every example is short and runs as its first line says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
EXPECTED = {
    "generate.py": r"32 requests, [1-9]\d* tokens",
    "client.py": "completion_tokens=48",
    "bring_a_kernel.py": r"(?s)caches_by_content (INCORRECT_NUMERICAL|CHEATING).*wrong_in_last_tile INCORRECT_NUMERICAL"
    r".*report: \S+/report\.html\nsame tokens in the served model: True",
}
TRAINED = {"train_tiny.py", "train_digits.py"}
"""Run by test_training.py."""
SLOW = {"bring_a_kernel.py"}
RUN = [
    pytest.param(path, id=path.name, marks=[pytest.mark.slow] if path.name in SLOW else [])
    for path in EXAMPLES
    if path.name in EXPECTED
]


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES} == {*EXPECTED, *TRAINED}


@pytest.mark.parametrize("path", RUN)
def test_example_runs_and_says_what_it_should(path: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "FASTKERNELS_HOME": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert re.search(EXPECTED[path.name], done.stdout)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_fits_forty_lines(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) < 40
