"""Serve a tiny Llama, judge your kernel on its tensors, serve it: `python examples/bring_a_kernel.py [DIR]`.

DIR holds L1/rms_norm.py (or any other op's file); left out, a shipped right candidate is judged.
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
from fastkernels.sets import resolve_set
from fastkernels.workloads import find_workload


def main() -> None:
    folder = sys.argv[1] if len(sys.argv) > 1 else str(Path(fastkernels.__file__).parent / "demo" / "faster")
    cases, _, _ = capture("tiny-llama", find_workload("demo"), device="cpu")
    items = plan_items(list(ops().values()), [resolve_set(folder)])
    sweep = Sweep(items, JudgeConfig(num_shapes=2, num_timed=1, protocol=Protocol.quick()), cases)
    results = run_sweep(sweep, start_run(sweep, None), Progress(stage=print))
    for record in results["ops"]:
        print(record["op"], record["verdict"], record["message"])
        for timing in record["timings"]:
            print("  {shapes}: {ratio:.2f} [{low:.2f}, {high:.2f}] {speed}".format(**timing))
    baseline = serve(ServeRequest("tiny-llama", "demo"))
    replaced = serve(ServeRequest("tiny-llama", "demo", (folder,)))
    print("same tokens in the served model:", baseline["token_ids"] == replaced["token_ids"])


if __name__ == "__main__":
    main()
