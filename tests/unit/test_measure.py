"""How far apart the answers of two models are said to be."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from judging import wait_until

from fastkernels.oracles.measure import distance
from fastkernels.oracles.turns import Pauses, Turns, forget


def test_equal_answers_are_at_no_distance() -> None:
    x = torch.randn(4, 5, 3)
    assert distance(x, x) == {"least_cosine": 1.0, "relative_rms": 0.0, "relative_max": 0.0}
    assert distance(x.long(), x.long()) == {"share_equal": 1.0}


def test_a_row_that_points_elsewhere_is_the_least_cosine() -> None:
    wanted = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    given = torch.tensor([[1.0, 0.0], [2.0, 2.0], [3.0, 0.0]])
    assert distance(given, wanted)["least_cosine"] == pytest.approx(math.sqrt(0.5), abs=1e-6)


@pytest.mark.parametrize("black", [0.0, 1 / 255, -1 / 255])
def test_a_nearly_black_pixel_beside_a_black_one_has_no_direction(black: float) -> None:
    """alphas have one number a pixel, of which any sign but the other's is a cosine of 0 or -1."""
    wanted, given = torch.ones(2, 8, 8, 1), torch.ones(2, 8, 8, 1)
    wanted[1, 3, 4], given[1, 3, 4] = black, 0.0
    found = distance(given, wanted)
    assert found["least_cosine"] == 1.0
    assert found["relative_max"] == pytest.approx(abs(black), rel=1e-2)


def test_a_pixel_that_one_side_alone_leaves_black_is_no_near_one() -> None:
    wanted, given = torch.ones(1, 8, 8, 3), torch.ones(1, 8, 8, 3)
    given[0, 3, 4] = 0.0
    assert distance(given, wanted)["least_cosine"] == 0.0
    assert distance(wanted, given)["least_cosine"] == 0.0


def test_an_answer_that_is_no_number_is_no_near_one() -> None:
    wanted, given = torch.ones(3, 2), torch.ones(3, 2)
    given[1] = math.nan
    assert not distance(given, wanted)["least_cosine"] <= 1.0


def test_what_is_nothing_everywhere_equals_itself_alone() -> None:
    assert distance(torch.zeros(3, 2), torch.zeros(3, 2))["least_cosine"] == 1.0
    assert distance(torch.ones(3, 2), torch.zeros(3, 2))["least_cosine"] == 0.0


def test_who_measures_waits_until_nobody_builds(tmp_path: Path) -> None:
    """Another process has its part in the lock until it ends."""
    path = tmp_path / "turns"
    other = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_SH); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", other, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as builder:
        assert builder.stdout is not None
        assert builder.stdin is not None
        builder.stdout.readline()
        turns = Turns(path)
        asked = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        assert subprocess.run([sys.executable, "-c", asked, str(path)], capture_output=True).returncode
        builder.stdin.write("\n")
        builder.stdin.close()
        with turns.alone():
            assert builder.wait() == 0
    del turns
    assert not subprocess.run([sys.executable, "-c", asked, str(path)], capture_output=True).returncode


COUNTING = r"""
import pathlib, subprocess, sys, time
from fastkernels.oracles.turns import Pauses
turns = Pauses(pathlib.Path(sys.argv[1]))
child = "import sys, time\nwhile True: print(flush=True); time.sleep(0.01)"
with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE) as process:
    for line in process.stdout:
        print(flush=True)
"""
ALONE = """
import pathlib, sys, time
from fastkernels.oracles.turns import Pauses
with Pauses(pathlib.Path(sys.argv[1])).alone():
    print(flush=True)
    time.sleep(600)
"""


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a child, both of which say that they run."""
    with subprocess.Popen(
        [sys.executable, "-c", COUNTING, str(tmp_path)], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def is_stopped(process: subprocess.Popen[bytes]) -> bool:
    one = psutil.Process(process.pid)
    return {p.status() for p in (one, *one.children(recursive=True))} == {psutil.STATUS_STOPPED}


def goes_on(process: subprocess.Popen[bytes]) -> bool:
    one = psutil.Process(process.pid)
    return all(p.status() != psutil.STATUS_STOPPED for p in (one, *one.children(recursive=True)))


def test_who_measures_stops_the_others_with_their_children(counting: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with Pauses(tmp_path).alone():
        assert wait_until(lambda: is_stopped(counting), 20)
    assert wait_until(lambda: goes_on(counting), 20)


def test_others_go_on_when_who_measured_was_killed(counting: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ALONE, str(tmp_path)], stdout=subprocess.PIPE) as measuring:
        assert measuring.stdout is not None
        measuring.stdout.readline()
        assert wait_until(lambda: is_stopped(counting), 20)
        measuring.kill()
    assert is_stopped(counting)
    forget(tmp_path, measuring.pid)
    assert wait_until(lambda: goes_on(counting), 20)
    assert not (tmp_path / str(measuring.pid)).exists()
