"""Every op of Llama-3.1-8B judged and timed on a GPU, with its share of the roofline, beside the torch paths.

    python benchmarks/llama_ops.py --level 1 --out results.json

Captures the model (random weights) on long prompts in steps of 8192 tokens, then runs the Tier 1 judge on the
largest calls of each phase: the baseline against `torch_native` where that set has the op, else against
`reference`. baseline_roofline_share is the production path's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from fastkernels.bench.sweep import Progress, Sweep, run_sweep, start_run
from fastkernels.capture.run import capture
from fastkernels.harness.judge import JudgeConfig
from fastkernels.harness.records import OpRecord
from fastkernels.harness.timing import Protocol
from fastkernels.harness.workers import Limits
from fastkernels.registry import ops_of_architecture
from fastkernels.sets import resolve_set
from fastkernels.workloads import Workload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--level", type=int, nargs="+", default=[1])
    parser.add_argument("--ops", nargs="*")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of one step")
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--merge", type=Path, nargs="+", help="only put these results into one file")
    arguments = parser.parse_args()
    if arguments.merge:
        merge(arguments.merge, arguments.out)
        return
    chosen = [e for e in ops_of_architecture("llama") if e.level in arguments.level]
    chosen = [e for e in chosen if not arguments.ops or e.name in arguments.ops]
    started = time.monotonic()
    workload = Workload("llama_ops", num_requests=arguments.requests, input_len=arguments.prompt, output_len=4)
    cases, _, _ = capture(
        arguments.model,
        workload,
        ops=[e.name for e in chosen],
        device=arguments.device,
        max_num_batched_tokens=arguments.tokens,
        budget_mb=256,
    )
    if any(e.name == "top_k_top_p_sample" for e in chosen):
        sampled, _, _ = capture(
            arguments.model, workload, ops=["top_k_top_p_sample"], device=arguments.device, temperature=0.8
        )
        cases.records.extend(sampled.records)
    if arguments.device == "cuda":
        torch.cuda.empty_cache()
    print(f"captured {len(cases)} cases in {time.monotonic() - started:.0f} s", flush=True)
    native, reference = resolve_set("torch_native"), resolve_set("reference")
    with_native = {e.name for e in native.ops()}
    items = [(e, native if e.name in with_native else reference) for e in chosen]
    config = JudgeConfig(
        device=arguments.device,
        dtypes=(torch.bfloat16,),
        num_shapes=1,
        num_captured=2,
        num_timed=2,
        protocol=Protocol(num_restarts=arguments.restarts, num_blocks=arguments.blocks, calls_per_visit=3),
    )
    sweep = Sweep(items, config, cases, Limits(memory_bytes=64 << 30), {k: str(v) for k, v in vars(arguments).items()})
    with tempfile.TemporaryDirectory() as folder:
        run = start_run(sweep, Path(folder) / "run")

        def keep(record: OpRecord) -> None:
            """What is measured is written at once: a machine may go before the sweep ends."""
            arguments.out.write_text(json.dumps(_without_samples(run.results()), indent=1))
            print(f"{time.monotonic() - started:5.0f} s  {record.op} {record.verdict}", flush=True)

        print(table(run_sweep(sweep, run, Progress(ends=keep))))
        arguments.out.write_text(json.dumps(_without_samples(run.results()), indent=1))


def merge(parts: list[Path], out: Path) -> None:
    """Runs of several machines or sizes in one file: {"runs": [...]}, each with its environment."""
    runs = [json.loads(part.read_text()) for part in parts]
    out.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    for run in runs:
        print(run["created"], run["environment"]["gpu"]["name"], run["request"])
        print(table(run))


def _without_samples(results: dict[str, Any]) -> dict[str, Any]:
    for record in results["ops"]:
        record["source"] = record["baseline_source"] = ""
        record["cases"] = []
        for timing in record["timings"]:
            timing["num_samples"] = len(timing["samples"])
            timing["clocks"] = [s["clocks"] for s in timing["samples"][:: max(1, len(timing["samples"]) // 4)]]
            timing["samples"] = []
    return results


def table(results: dict[str, Any]) -> str:
    rows = [f"{'op':28}{'MB':>8}{'base us':>10}{'graph us':>10}{'roof %':>8}{'torch us':>10}{'base/torch':>12}  shapes"]
    for record in results["ops"]:
        for t in record["timings"]:
            rows.append(
                f"{record['op']:28}{t['num_bytes'] / 1e6:8.1f}{t['baseline_us']:10.1f}"
                f"{t['graph_baseline_us'] or 0:10.1f}{100 * t['baseline_roofline_share']:8.1f}"
                f"{t['candidate_us']:10.1f}{t['ratio']:12.3f}  {t['phase']} {t['shapes'][:60]}"
            )
        if not record["timings"] or record["verdict"] != "PASSED":
            rows.append(f"{record['op']:28}{record['implementation']} {record['verdict']} {record['message'][:150]}")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
