"""Runs and boards made up for the tests of entries and of the site: two kinds, two hardwares, hostile names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report_runs import (
    ENVIRONMENT,
    HOSTILE,
    REQUEST,
    record,
    records,
    timed_record,
    timing,
    write_eval_run,
    write_run,
    wrong,
)

from fastkernels.harness.records import OpRecord
from fastkernels.harness.verdict import Verdict
from fastkernels.leaderboard.store import Board
from fastkernels.leaderboard.submission import submission

B200 = {**ENVIRONMENT["gpu"], "name": "NVIDIA B200"}
KERNEL = "import triton\n\n\n@triton.jit\ndef scale(x):\n    pass\n\n\ndef forward(x):\n    return 2 * x\n"
ADAPT = "LEVELS = (1, 2)\n\n\ndef adapt(op_class):\n    return None  # one file for many ops\n"
LAUNCHED = ("void at::native::vectorized_elementwise_kernel<4, std::array<char*, 2>>(int)", HOSTILE)
ALPHA, BETA, ODD, FAR = "Alpha", "Beta", 'it\'s <b>odd</b> & "quoted"', "Far Away"


def mine(
    op: str, name: str, ratios: tuple[float, ...], level: int = 1, source: str = KERNEL, launched: Sequence[str] = ()
) -> OpRecord:
    timings = [timing(ratio, f"x[{4096 >> i}, 4096]") for i, ratio in enumerate(ratios)]
    return record(op, name, level=level, source=source, timings=timings, launched=list(launched))


def make_board(root: Path) -> Board:
    """Alpha: few ops and fast ones; Beta: more, derived by an adapt.py; one far away; two eval runs of the sets."""
    shared = {"source": ADAPT, "source_path": "/home/somebody/beta/adapt.py"}
    runs = {
        ALPHA: [
            mine("rms_norm", "alpha", (1.6, 1.3, 1.004), launched=LAUNCHED), mine("linear", "alpha", (2.5,)),
            mine("llama_mlp", "alpha", (1.8,), 2), wrong("embedding", "alpha", Verdict.CHEATING, HOSTILE),
        ],
        BETA: [
            record("rms_norm", "beta", timings=[timing(1.2), timing(0.8, "x[17, 4096]")], **shared),
            record("linear", "beta", timings=[timing(0.5)], **shared),
            record("silu_and_mul", "beta", timings=[timing(1.002)], **shared),
            timed_record("llama_mlp", "beta", level=2, **shared),
        ],
        ODD: [mine("embedding", HOSTILE[:40].replace("/", "_"), (1.01,), source=f"# {HOSTILE}\n")],
    }  # fmt: skip
    board = Board(root / "board")
    for number, (agent, found) in enumerate(runs.items()):
        run = write_run(root / f"run-{number}", found, request={**REQUEST, "quick": False})
        board.add(submission(run, agent))
    far = write_run(root / "far", [mine("rms_norm", "far", (3.0,))], request=REQUEST, gpu=B200)
    board.add(submission(far, FAR), is_forced=True)
    run = write_eval_run(root / "eval")
    board.add(submission(run, ALPHA, "fast"))
    board.add(submission(run, BETA, "fragile"))
    return board


WHOLE = {**REQUEST, "quick": False}
OTHER_GPU = {"name": "NVIDIA B200", "num_sms": 148, "memory_bytes": 1 << 37, "l2_bytes": 1 << 27, "cuda": "13.0"}


def kernels_run(path: Path, found: list[Any] | None = None, **changed: Any) -> Path:
    """Of the set "fast", all that passed timed."""
    fast = [r for r in records() if r.implementation == "fast" and r.level == 1]
    fast.append(timed_record("vocab_parallel_embedding", "fast", level=2))
    return write_run(path, fast if found is None else found, **{"request": WHOLE, **changed})
