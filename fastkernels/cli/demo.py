"""`fastkernels demo`: the whole job on a tiny model, in under two minutes without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from typer import Option

import fastkernels
from fastkernels.bench.served import ServeRequest, serve
from fastkernels.bench.sweep import Sweep, plan_items, start_run
from fastkernels.capture.run import capture
from fastkernels.cli.common import console, error_console
from fastkernels.cli.kernels import judge_items
from fastkernels.cli.table import print_verdicts
from fastkernels.errors import EXIT_NOT_PASSED, EXIT_OK
from fastkernels.harness.judge import JudgeConfig
from fastkernels.harness.timing import Protocol
from fastkernels.harness.verdict import Verdict
from fastkernels.registry import find_ops
from fastkernels.report.publish import publish
from fastkernels.sets import resolve_set
from fastkernels.workloads import find_workload

MODEL, WORKLOAD, OP = "tiny-llama", "demo", "rms_norm"
CANDIDATES = ("faster", "wrong_in_last_tile", "caches_by_content")
FOLDER = Path(fastkernels.__file__).parent / "demo"


def demo(
    out: Annotated[Path | None, Option(help="The run folder; a new one under ./runs when left out.")] = None,
) -> int:
    """Serve a tiny Llama, capture its operators' tensors, judge three candidate kernels, serve the good one."""
    say = console.print
    say(
        f"[bold]1. A tiny Llama serves {find_workload(WORKLOAD).num_requests} English prompts; its ops are recorded.[/]"
    )
    with error_console.status("serving"):
        cases, calls, outputs = capture(MODEL, find_workload(WORKLOAD), device="cpu")
    first = outputs[0]
    answer = first.outputs[0].text
    say(f"   {first.prompt!r} -> {answer!r}" if first.prompt else f"   -> {answer!r}", markup=False)
    say("   (its weights are random: the text means nothing, the tensors are real)")
    say(f"   {sum(calls.values())} calls of {len(cases.ops)} ops kept as {len(cases)} cases")
    say(f"[bold]2. Three candidates for {OP} are judged on them.[/]")
    sweep = Sweep(
        items=plan_items(find_ops(OP), [resolve_set(FOLDER / name) for name in CANDIDATES]),
        config=JudgeConfig(device="cpu", num_shapes=3, num_timed=2, protocol=Protocol(num_restarts=4, num_blocks=10)),
        cases=cases,
    )
    folder = start_run(sweep, out, "demo")
    cases.save(folder.path / "cases")
    results = judge_items(sweep, folder)
    print_verdicts(console, results)
    say("[bold]3. The same model serves with each candidate in place; its tokens are compared.[/]")
    served = _serve_each()
    say(_served_table(served))
    folder.finish(
        **{k: v for k, v in results.items() if k in ("status", "seconds", "ceilings", "case_hashes")}, served=served
    )
    report = publish(folder.path)
    say(f"report: {report}", soft_wrap=True)
    return EXIT_OK if _is_as_expected(results) else EXIT_NOT_PASSED


def _serve_each() -> list[dict[str, Any]]:
    """Per candidate: what became of each replacement, its calls per rank, and how many tokens stayed the same."""
    rows = []
    with error_console.status("serving"):
        expected = serve(ServeRequest(MODEL, WORKLOAD))["token_ids"]
        for name in CANDIDATES:
            served = serve(ServeRequest(MODEL, WORKLOAD, (str(FOLDER / name),)))
            pairs = [
                pair for x, y in zip(expected, served["token_ids"], strict=True) for pair in zip(x, y, strict=True)
            ]
            rows.append(
                {
                    "set": name,
                    "replacements": served["candidates"],
                    "num_tokens": len(pairs),
                    "num_same_tokens": sum(a == b for a, b in pairs),
                }
            )
    return rows


def _served_table(served: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("served with", "status", "calls", "tokens that agree with the baseline"):
        table.add_column(name)
    for row in served:
        status = ", ".join(r["status"] for r in row["replacements"])
        calls = sum(r["num_calls"] for r in row["replacements"])
        table.add_row(row["set"], status, str(calls), f"{row['num_same_tokens']} of {row['num_tokens']}")
    return table


def _is_as_expected(results: dict[str, Any]) -> bool:
    """The right one passed and the two others did not."""
    verdicts = {record["implementation"]: record["verdict"] for record in results["ops"]}
    return {name for name, verdict in verdicts.items() if verdict == Verdict.PASSED} == {CANDIDATES[0]}
