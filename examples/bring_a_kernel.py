"""Serve a tiny Llama, judge kernels on its tensors, serve the first: `python examples/bring_a_kernel.py [DIR ...]`.

A DIR holds L1/rms_norm.py (or any other op's file). Left out: a right kernel, one wrong in its last tile, one that
remembers answers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import fastkernels
from fastkernels.bench.served import ServeRequest, serve
from fastkernels.bench.sweep import Progress, Sweep, plan_items, run_sweep, start_run
from fastkernels.capture.run import capture
from fastkernels.harness.judge import JudgeConfig
from fastkernels.harness.timing import Protocol
from fastkernels.registry import ops
from fastkernels.report.publish import publish
from fastkernels.sets import resolve_set
from fastkernels.workloads import find_workload

DEMO = Path(fastkernels.__file__).parent / "demo"


def main() -> None:
    folders = sys.argv[1:] or [str(DEMO / n) for n in ("faster", "wrong_in_last_tile", "caches_by_content")]
    cases, _, _ = capture("tiny-llama", find_workload("demo"), device="cpu")
    items = plan_items(list(ops().values()), [resolve_set(folder) for folder in folders])
    sweep = Sweep(items, JudgeConfig(num_shapes=2, num_timed=1, protocol=Protocol.quick()), cases)
    run = start_run(sweep, None)
    for record in run_sweep(sweep, run, Progress())["ops"]:
        times = ["{ratio:.2f} [{low:.2f}, {high:.2f}] {speed}".format(**timing) for timing in record["timings"]]
        print(record["op"], record["implementation"], record["verdict"], *times, record["message"])
    print("report:", publish(run.path, is_tracked=False))
    baseline, replaced = (serve(ServeRequest("tiny-llama", "demo", sets)) for sets in ((), (folders[0],)))
    print("same tokens in the served model:", baseline["token_ids"] == replaced["token_ids"])


if __name__ == "__main__":
    main()
