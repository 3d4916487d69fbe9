"""The machines that measure a run. Its figures are published under one environment: that of hosts which are alike."""

from __future__ import annotations

from typing import Any

import torch

from fastkernels.bench.environment import environment
from fastkernels.bench.resume import difference
from fastkernels.bench.run_folder import RunFolder

Json = dict[str, Any]


def environment_here(device: str) -> Json:
    """Of this machine, which may have no GPU although `device` is one: the driver of a cluster."""
    return {**environment(device if torch.cuda.is_available() else "cpu"), "device": device}


def is_measured(header: Json) -> bool:
    """Whether the environment in run.json is that of who measured: a run over a cluster begins without any host."""
    return header.get("hosts") != {}


class Hosts:
    """Who measures a run: the first one's environment becomes the run's, unless hosts before it gave it one.

    run.json holds "hosts", the host of each scenario, of a run over a cluster.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def take_here(self, found: Json) -> None:
        """This machine goes on with a run. found: its environment, no other than the run's where that has one."""
        if not is_measured(self._folder.header()):
            self._folder.amend(environment=found, hosts=None)

    def admit(self, scenario: str, host: str, found: Json) -> str:
        """Why `host`, of environment `found`, may not measure `scenario`; "" when it may, which is written down."""
        if str(found["device"]).startswith("cuda") and "gpu" not in found:
            return f"{host} has no GPU that torch can use"
        header = self._folder.header()
        known: dict[str, str] = header.get("hosts") or {}
        if not is_measured(header):
            self._folder.amend(environment=found, hosts={scenario: host})
            return ""
        unlike = difference(header["environment"], found)
        if unlike is not None:
            others = ", ".join(sorted(set(known.values()))) or "what was measured before"
            return f"{host} has {unlike[1]}; {others} has {unlike[0]}"
        self._folder.amend(hosts={**known, scenario: host})
        return ""
