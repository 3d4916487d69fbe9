"""Which hosts may measure a run, and which environment it has by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastkernels.bench.eval.hosts import Hosts, is_measured
from fastkernels.bench.run_folder import RunFolder

DRIVER = {"fastkernels": "1", "cpu": "Xeon", "num_cores": 4, "packages": {"torch": "2"}, "device": "cuda"}
H200: dict[str, Any] = {**DRIVER, "cpu": "EPYC", "num_cores": 64, "gpu": {"name": "H200"}}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create("eval", {}, DRIVER, tmp_path / "run", hosts={})


def test_the_first_host_gives_a_run_its_environment_and_alike_ones_join(folder: RunFolder) -> None:
    hosts = Hosts(folder)
    assert not is_measured(folder.header())
    assert hosts.admit("a", "one", H200) == ""
    assert hosts.admit("b", "two", {**H200, "num_cores": 32}) == "", "A time on a GPU is the GPU's."
    assert folder.header()["environment"] == H200
    assert folder.header()["hosts"] == {"a": "one", "b": "two"}
    assert is_measured(folder.header())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gpu": {"name": "A100"}}, "two has A100; one has H200"),
        ({"packages": {"torch": "3"}}, "two has torch 3; one has torch 2"),
        ({"commit": "abc"}, "two has fastkernels 1 at abc; one has fastkernels 1"),
        ({"gpu": None}, "two has no GPU that torch can use"),
    ],
)
def test_an_unlike_host_is_told_with_what_differs(folder: RunFolder, change: dict[str, Any], says: str) -> None:
    hosts = Hosts(folder)
    hosts.admit("a", "one", H200)
    found = {key: value for key, value in {**H200, **change}.items() if value is not None}
    assert hosts.admit("b", "two", found) == says
    assert folder.header()["hosts"] == {"a": "one"}


def test_a_first_host_without_the_device_measures_nothing(folder: RunFolder) -> None:
    assert Hosts(folder).admit("a", "one", DRIVER) == "one has no GPU that torch can use"
    assert not is_measured(folder.header())


def test_hosts_join_a_run_that_one_machine_began(tmp_path: Path) -> None:
    folder = RunFolder.create("eval", {}, H200, tmp_path / "run")
    hosts = Hosts(folder)
    hosts.take_here(H200)
    assert "hosts" not in folder.header()
    a100 = {**H200, "gpu": {"name": "A100"}}
    assert hosts.admit("a", "one", a100) == "one has A100; what was measured before has H200"
    assert hosts.admit("a", "one", H200) == ""
    assert folder.header()["hosts"] == {"a": "one"}
