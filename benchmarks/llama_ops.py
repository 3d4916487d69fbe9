"""Every op of Llama-3.1-8B judged and timed, with its share of the roofline, beside the torch paths.

    python benchmarks/llama_ops.py --level 1 --out part1.json
    python benchmarks/llama_ops.py --level 2 3 4 --sets torch_compile --out part2.json
    python benchmarks/llama_ops.py --merge part1.json part2.json --out benchmarks/results/h200/llama_ops.json

Captures the model (random weights, the real widths, --layers of its layers) on long prompts in steps of --tokens
tokens; ops that no such step calls are captured again in steps of an eighth of them (a prompt in pieces), those that
edit logits or draw tokens in requests that ask for all of them. Then runs the Tier 1 judge on the largest calls of
each phase: the baseline against every set of --sets that has the op, else against `reference`. A ratio over 1 says
that the set is faster than the baseline. "summary" has one entry a timed case: its bytes and flops, the baseline's
share of the measured copy bandwidth and of the measured matrix rate, and each set's time, ratio, interval and
verdict; bytes_share is of the cold time that decides, graph_bytes_share of replays of a CUDA graph. "misses" names
what falls short of the goal: memory-bound ops of level 1 at GOAL_SHARE of the measured copy bandwidth where they move
over GOAL_BYTES, and no set faster than the baseline.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from fastkernels.bench.sweep import Item, Progress, Sweep, run_sweep, start_run
from fastkernels.capture.run import capture
from fastkernels.capture.store import CaseSet
from fastkernels.harness.expect import baseline_class
from fastkernels.harness.judge import JudgeConfig
from fastkernels.harness.records import OpRecord
from fastkernels.harness.timing import Protocol
from fastkernels.harness.workers import Limits
from fastkernels.registry import OpEntry, ops, ops_of_architecture
from fastkernels.sets import resolve_set
from fastkernels.workloads import Workload

GOAL_SHARE, GOAL_BYTES = 0.85, 64e6
SAMPLING: dict[str, Any] = {
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 0.95,
    "min_p": 0.02,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.2,
    "repetition_penalty": 1.1,
    "logit_bias": {7: 2.0, 9: -3.0},
    "logprobs": 5,
}
"""What makes the engine call every op between logits and tokens."""


def main() -> None:
    arguments = _arguments()
    if arguments.merge:
        merge(arguments.merge, arguments.out)
        return
    chosen = [e for e in ops_of_architecture("llama") if e.level in arguments.level]
    chosen = [e for e in chosen if not arguments.ops or e.name in arguments.ops]
    started = time.monotonic()
    cases = captured_cases(arguments, [e.name for e in chosen])
    if arguments.device == "cuda":
        torch.cuda.empty_cache()
    print(f"captured {len(cases)} cases in {time.monotonic() - started:.0f} s", flush=True)
    config = JudgeConfig(
        device=arguments.device,
        dtypes=(),  # the captured dtype alone, at the captured sizes
        num_shapes=1,
        num_captured=2,
        num_timed=2,
        protocol=Protocol(num_restarts=arguments.restarts, num_blocks=arguments.blocks, calls_per_visit=3),
    )
    told = {k: v.name if isinstance(v, Path) else v for k, v in vars(arguments).items()}
    request = {k: [str(x) for x in v] if isinstance(v, list) else str(v) for k, v in told.items()}
    limits = Limits(call_seconds=120.0, memory_bytes=int(arguments.memory_gb * (1 << 30)))
    sweep = Sweep(items_of(chosen, arguments.sets), config, cases, limits, request)
    with tempfile.TemporaryDirectory() as folder:
        run = start_run(sweep, Path(folder) / "run")

        def keep(record: OpRecord) -> None:
            """What is measured is written at once: a machine may go before the sweep ends."""
            write(run.results(), arguments)
            print(
                f"{time.monotonic() - started:5.0f} s  {record.op} {record.implementation} {record.verdict}", flush=True
            )

        run_sweep(sweep, run, Progress(ends=keep))
        print(table(write(run.results(), arguments)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3.1-8b", help="a preset, or the path of a config.json")
    parser.add_argument("--layers", type=int, default=2, help="layers of the model that is captured; widths are kept")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--level", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--ops", nargs="*")
    parser.add_argument("--sets", nargs="+", default=["torch_native", "torch_compile", "liger"])
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of one step")
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--restarts", type=int, default=3, help="an interval over two is 3 times as wide as over three")
    parser.add_argument("--memory-gb", type=float, default=64.0)
    parser.add_argument("--budget-mb", type=int, default=256, help="of captured values; beyond it moments are kept")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--merge", type=Path, nargs="+", help="only put these results into one file")
    return parser.parse_args()


def captured_cases(arguments: argparse.Namespace, names: list[str]) -> CaseSet:
    """Calls of a model of the real widths and `--layers` layers."""
    workload = Workload("llama_ops", num_requests=arguments.requests, input_len=arguments.prompt, output_len=4)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(_config(arguments.model) | {"num_hidden_layers": arguments.layers}))
        common: dict[str, Any] = {"device": arguments.device, "max_num_batched_tokens": arguments.tokens}
        cases, _, _ = capture(config, workload, ops=names, budget_mb=arguments.budget_mb, **common)
        if missing := _uncalled(cases, names):
            common["max_num_batched_tokens"] = arguments.tokens // 8
            cases.records.extend(capture(config, workload, ops=missing, **common)[0].records)
        if missing := _uncalled(cases, names):
            allowed = tuple(range(0, _config(arguments.model)["vocab_size"], 3))
            sampling = SAMPLING | {"allowed_token_ids": allowed}
            cases.records.extend(capture(config, workload, ops=missing, sampling=sampling, **common)[0].records)
    return cases


def _uncalled(cases: CaseSet, names: list[str]) -> list[str]:
    """Ops without a case; collectives are never called by one process."""
    called = {case.op for case in cases}
    return [n for n in names if n not in called and baseline_class(ops()[n]).spec.num_ranks == 1]


def _config(model: str) -> dict[str, Any]:
    if model.endswith(".json"):
        return json.loads(Path(model).read_text())
    return json.loads(files("fastkernels.engine").joinpath("presets", f"{model}.json").read_text())


def items_of(chosen: list[OpEntry], names: list[str]) -> list[Item]:
    """Each op with every set that has it, else with its definition."""
    sets = [resolve_set(name) for name in names]
    offered = {s.name: {e.name for e in s.ops()} for s in sets}
    items: list[Item] = []
    for entry in chosen:
        having = [s for s in sets if entry.name in offered[s.name]]
        items += [(entry, s) for s in having or [resolve_set("reference")]]
    return items


def write(results: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """The results without their samples, sources and cases, and with a summary."""
    for record in results["ops"]:
        record["source"] = record["baseline_source"] = ""
        record["cases"] = []
        for timing in record["timings"]:
            timing["num_samples"] = len(timing["samples"])
            timing["clocks"] = [s["clocks"] for s in timing["samples"][:: max(1, len(timing["samples"]) // 4)]]
            timing["samples"] = []
    results["num_hidden_layers"] = arguments.layers
    results["summary"] = summary(results)
    results["misses"] = misses(results["summary"])
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    return results


def summary(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry a timed case, and one for a judgement that has none."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for record in results["ops"]:
        for timing in record["timings"] or [None]:
            shapes = timing["shapes"] if timing else ""
            entry = found.setdefault((record["op"], shapes), {"op": record["op"], "level": record["level"], "sets": {}})
            judged = {"verdict": record["verdict"], "message": record["message"][-300:]}
            if timing:
                entry.update(_baseline_of(timing, results.get("ceilings", {})))
                keys = ("ratio", "low", "high", "noise_floor", "speed", "num_pairs")
                judged |= {"us": timing["candidate_us"], "graph_us": timing["graph_candidate_us"]}
                judged |= {key: timing[key] for key in keys}
            entry["sets"][record["implementation"]] = judged
    return list(found.values())


def misses(entries: list[dict[str, Any]]) -> list[str]:
    """What falls short of the goal, and what has no time; one line each."""
    found = []
    for entry in entries:
        what = f"{entry['op']} {entry.get('phase', '')} {entry.get('shapes', '')[:48]}".strip()
        is_moving = (entry.get("bytes_share") or 0) > (entry.get("flops_share") or 0)
        if entry["level"] == 1 and is_moving and entry["num_bytes"] > GOAL_BYTES and entry["bytes_share"] < GOAL_SHARE:
            found.append(f"{what}: {100 * entry['bytes_share']:.0f} % of the copy bandwidth")
        for name, judged in entry["sets"].items():
            if judged["verdict"] != "PASSED":
                found.append(f"{what}: {name} {judged['verdict']} {judged['message'][:160]}")
            elif judged.get("speed") == "WIN":
                found.append(f"{what}: {name} is {judged['ratio']:.2f} times as fast")
    return found


def _baseline_of(timing: dict[str, Any], ceilings: dict[str, Any]) -> dict[str, Any]:
    seconds = (timing["graph_baseline_us"] or timing["baseline_us"]) / 1e6
    rates = ceilings.get("flops_per_s", {})
    rate = rates.get(timing["dtype"], max(rates.values(), default=0.0))
    bandwidth = ceilings.get("copy_bytes_per_s", 0.0)
    cold_seconds = timing["baseline_us"] / 1e6
    return {
        "phase": timing["phase"],
        "dtype": timing["dtype"],
        "shapes": timing["shapes"],
        "num_bytes": timing["num_bytes"],
        "num_flops": timing["num_flops"],
        "baseline_us": timing["baseline_us"],
        "baseline_graph_us": timing["graph_baseline_us"],
        "roofline_share": timing["baseline_roofline_share"],
        "bytes_share": timing["num_bytes"] / bandwidth / cold_seconds if bandwidth else None,
        "graph_bytes_share": timing["num_bytes"] / bandwidth / seconds if bandwidth else None,
        "flops_share": timing["num_flops"] / rate / cold_seconds if rate else None,
    }


def merge(parts: list[Path], out: Path) -> None:
    """Runs of several machines or sizes in one file: {"runs": [...]}, each with its environment and summary."""
    runs = []
    for part in parts:
        content = json.loads(part.read_text())
        runs += content.get("runs", [content])
    out.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    for run in runs:
        print(run["created"], run["environment"].get("gpu", {}).get("name", "cpu"), run["request"])
        print(table(run))


def table(results: dict[str, Any]) -> str:
    """One line a case and set; shares are the baseline's."""
    head = f"{'op':28}{'MB':>8}{'GFLOP':>8}{'base us':>9}{'graph':>9}{'roof %':>7}{'bytes %':>8}{'flops %':>8}"
    rows = [head + f"  {'set':14}{'us':>9}{'ratio':>7}  {'95 % interval':16}speed  case"]
    for entry in results["summary"]:
        for name, judged in entry["sets"].items():
            if "ratio" not in judged:
                rows.append(f"{entry['op']:28}{name} {judged['verdict']} {judged['message'][:120]!r}")
                continue
            shares = (entry["roofline_share"], entry["bytes_share"], entry["flops_share"])
            roof, by_bytes, by_flops = (100 * (share or 0.0) for share in shares)
            interval = f"{judged['low']:.3f}-{judged['high']:.3f}"
            verdict = judged["speed"] if judged["verdict"] == "PASSED" else judged["verdict"]
            rows.append(
                f"{entry['op']:28}{entry['num_bytes'] / 1e6:8.1f}{entry['num_flops'] / 1e9:8.1f}"
                f"{entry['baseline_us']:9.1f}{entry['baseline_graph_us'] or 0:9.1f}"
                f"{roof:7.1f}{by_bytes:8.1f}{by_flops:8.1f}  {name:14}{judged['us']:9.1f}{judged['ratio']:7.3f}  "
                f"{interval:16}{verdict:5}  {entry['phase']} {entry['shapes'][:48]}"
            )
    return "\n".join(rows + [f"misses: {line}" for line in results.get("misses", ())])


if __name__ == "__main__":
    main()
