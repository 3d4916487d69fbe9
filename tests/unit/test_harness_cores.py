"""A core for the judge and one for its workers, wherever there are two."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from fastkernels.cli.common import _MACHINE_TROUBLE
from fastkernels.harness import cores
from fastkernels.harness.judge import MACHINE_TROUBLE


@pytest.mark.parametrize(
    ("affinity", "idle", "wanted"),
    [
        ({0, 1, 2}, [1.0, 3.0, 2.0], [1, 2, 0]),
        ({64, 65}, [1.0, 3.0], [64, 65]),  # lxcfs numbers a container's cores from 0
        ({1, 65}, [1.0, 3.0], [1, 65]),
    ],
)
def test_every_core_that_may_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, affinity: set[int], idle: list[float], wanted: list[int]
) -> None:
    looks = iter([[SimpleNamespace(idle=0.0) for _ in idle], [SimpleNamespace(idle=seconds) for seconds in idle]])
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: next(looks))
    monkeypatch.setattr(cores, "_LOOK_SECONDS", 0.0)
    assert cores._idlest(affinity) == wanted


def test_what_ends_a_sweep_is_known_to_its_command() -> None:
    assert set(_MACHINE_TROUBLE) >= MACHINE_TROUBLE
