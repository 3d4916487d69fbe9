"""A core for the judge and another for the worker that it waits for: both spin, and on one core each waits out the
other's time slice (4 ms on Linux)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence

import psutil
import torch

from fastkernels.harness.workers import Worker

_LOOK_SECONDS = 0.05


@contextlib.contextmanager
def own_cores(workers: Sequence[Worker]) -> Iterator[None]:
    """This thread on one core, every worker on another, by turns; where there is only one core, nothing is done.

    torch gets one thread here: a second one would wait on the workers' core for its time slice, at every operation.
    """
    before, num_threads = os.sched_getaffinity(0), torch.get_num_threads()
    if len(before) < 2:
        yield
        return
    for_workers, for_judge = _idlest(before)[:2]
    for worker in workers:
        worker.pin(for_workers)
    os.sched_setaffinity(0, {for_judge})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        os.sched_setaffinity(0, before)


def _idlest(cores: set[int]) -> list[int]:
    """All of `cores`, those that others use least first; a container may show other cores than its own, or fewer: of
    what it does not show nothing is known."""
    first = psutil.cpu_times(percpu=True)
    time.sleep(_LOOK_SECONDS)
    second = psutil.cpu_times(percpu=True)
    idle = {core: second[core].idle - first[core].idle for core in cores if core < min(len(first), len(second))}
    return sorted(cores, key=lambda core: (-idle.get(core, 0.0), core))
