"""Runs made up for the tests of reports: records of the real classes, every kind of outcome, hostile text."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastkernels.bench.eval.records import EVAL_SCHEMA_VERSION, ItemRecord, PassRecord, SetRecord, SubsetRecord
from fastkernels.bench.run_folder import RunFolder
from fastkernels.harness.records import CaseRecord, NullRecord, OpRecord, Samples, TimingRecord
from fastkernels.harness.timed_figures import LEAST_NOISE, timed_figures
from fastkernels.harness.verdict import Verdict
from fastkernels.harness.visits import BASELINE, BASELINE_AGAIN, CANDIDATE, Timed
from fastkernels.report.eval_view import part_scores, set_scores
from fastkernels.scoring.manifest import load_manifest

HOSTILE = "</script><script>window.owned = 1</script><img src=x onerror='window.owned = 1'>&amp; {{ 7 * 7 }}"
NULLS = ("zeros", "mean", "copy_of_input", "last_tile_dropped")
ENVIRONMENT = {
    "fastkernels": "0.1.0",
    "commit": "0123456789ab",
    "python": "3.11.7",
    "platform": "Linux",
    "cpu": "A Processor",
    "num_cores": 8,
    "packages": {"torch": "2.13.0", "numpy": "2.3.5"},
    "device": "cuda",
    "gpu": {"name": "NVIDIA H200", "num_sms": 132, "memory_bytes": 150 << 30, "l2_bytes": 60 << 20, "cuda": "13.0"},
}
REQUEST = {"target": ["rms_norm", "linear"], "level": None, "candidates": ["my set"], "device": "cuda", "quick": True}
CLOCKS = {"sm_mhz": 1980, "memory_mhz": 3201, "temperature_c": 61, "power_w": 540.5, "throttle_reasons": 0x24}


NUM_RESTARTS, NUM_BLOCKS = 2, 4
HALF, FLOOR = math.log(1.03), 0.02
"""Of an interval, as a logarithm; of the baseline against itself."""


def samples(side: str, center_us: float, half: float, clocks: dict[str, Any]) -> list[Samples]:
    """Visits about `center_us` in turn above and below it, so that their ratio to a steady side has the interval's
    half `half`, as scoring.statistics reckons it."""
    spread = half * math.sqrt(2 / math.pi * NUM_RESTARTS * NUM_BLOCKS) / (1.960 * 1.4826)
    found = []
    for restart in range(NUM_RESTARTS):
        for block in range(-1, NUM_BLOCKS):
            of_visit = 1000 * center_us * math.exp(spread if block % 2 else -spread)
            times = [of_visit * share for share in (0.98, 1.0, 1.0, 1.03)]
            claims = [t + 9000 for t in times]
            found.append(Samples(restart, block, side, True, claims, times, [800], [4000] * 4, clocks))
    warm = [0.7 * 1000 * center_us] * 4
    found.append(Samples(0, 0, side, False, warm, warm, [1], [1] * 4, clocks))
    return found


def timing(ratio: float, shapes: str = "x[4096, 4096]", phase: str = "", **changed: Any) -> TimingRecord:
    """Of samples that say so. changed: what the record says otherwise."""
    of_sides = {BASELINE: (ratio, 0.0), BASELINE_AGAIN: (ratio, math.log(1 + FLOOR)), CANDIDATE: (1.0, HALF)}
    found = [s for side, (times, half) in of_sides.items() for s in samples(side, 30.0 * times, half, CLOCKS)]
    values: dict[str, Any] = {
        "case": f"captured {shapes}",
        "phase": phase,
        "dtype": "bfloat16",
        "shapes": shapes,
        "clock": "device events",
        **asdict(timed_figures(Timed(found), "cuda", LEAST_NOISE["cuda"])),
        "ratio": ratio,  # without what it was rounded by
        "graph_baseline_us": 29.0 * ratio,
        "graph_candidate_us": 28.25,
        "num_bytes": 1 << 26,
        "num_flops": 1 << 24,
        "floor_us": 9.0,
        "baseline_roofline_share": 0.6,
        "candidate_roofline_share": 0.875,
        "samples": found,
    }
    return TimingRecord(**{**values, **changed})


def case(
    verdict: Verdict = Verdict.PASSED, family: str = "normal", scale: float = 1.0, message: str = ""
) -> CaseRecord:
    is_passed = verdict is Verdict.PASSED
    error = {"element": 2e-3 * scale, "row": 5e-4 * scale, "bias": 1e-5 * scale, "max_abs": 7.25e-3 * scale}
    return CaseRecord(
        case=family,
        family=family,
        phase="",
        dtype="bfloat16",
        shapes="x[31, 257]",
        verdict=verdict.value,
        message=message,
        error=error if is_passed else {},
        baseline_error={"element": 1e-3, "row": 2e-4, "bias": 1e-5, "max_abs": 4e-3},
        share={"element": 0.25 * scale, "row": 0.25 * scale, "bias": 0.1 * scale} if is_passed else {},
        tolerance={"y": {"atol": 1e-2, "rtol": 1e-2, "element": 8e-3, "row": 2e-3, "bias": 1e-4}},
    )


def num_calls(cases: Sequence[CaseRecord], timings: Sequence[TimingRecord]) -> int:
    """Of a candidate that was checked and timed so."""
    timed = [sample for timing in timings for sample in timing.samples if sample.side == CANDIDATE]
    return len(cases) + sum(len(sample.claim_ns) for sample in timed)


def record(op: str, name: str, verdict: Verdict = Verdict.PASSED, **changed: Any) -> OpRecord:
    families = ("normal", "heavy_tailed", "integers", "one_hot", "captured")
    cases = changed.get("cases", [case(family=f, scale=(i + 1) / 3) for i, f in enumerate(families)])
    timings = changed.get("timings", [])
    values: dict[str, Any] = {
        "op": op,
        "level": 1,
        "implementation": name,
        "source_path": f"/home/somebody/{name}/L1/{op}.py",
        "source_sha256": f"{op}{name}".encode().hex().ljust(64, "0")[:64],
        "device": "cuda",
        "verdict": verdict.value,
        "cases": cases,
        "nulls": [NullRecord("bfloat16", null, "rejected", f"y[0, {i}] is 0") for i, null in enumerate(NULLS)],
        "num_calls": num_calls(cases, timings),
        "peak_memory_bytes": 3 << 30,
        "seconds": 12.5,
        "seed": 12345,
        "confinement": {"network_namespace": True, "landlock": False, "user_id": 65534},
        "source": "import torch\n\n\ndef forward(x):\n    return x * 2  # fast\n",
        "baseline_source": "import torch\n\n\ndef forward(x):\n    return x + x\n",
    }
    return OpRecord(**{**values, **changed})


def timed_record(op: str, name: str, **changed: Any) -> OpRecord:
    """One that passed and ties, where nothing else is said."""
    return record(op, name, **{"timings": [timing(1.0)], **changed})


def wrong(op: str, name: str, verdict: Verdict, message: str, **changed: Any) -> OpRecord:
    cases = [case(), case(verdict, "captured", message=message)]
    return record(op, name, verdict, **{"message": message, "cases": cases, **changed})


def records() -> list[OpRecord]:
    """Wins, ties, losses, every way to fail, and text that would break a careless page."""
    long_shapes = "query[16, 8, 128] key_cache[4096, 16, 8, 128] value_cache[4096, 16, 8, 128] block_table[16, 256]"
    traceback = f"Traceback (most recent call last):\n  File 'L1/linear.py', line 3\nImportError: {HOSTILE}"
    return [
        record("rms_norm", "fast", timings=[timing(1.62), timing(1.31, "x[17, 4096]"), timing(1.004, "x[1, 64]")]),
        record("silu_and_mul", "fast", timings=[timing(0.73, is_launch_bound=True, late_us=27.4)]),
        record("flash_attn_decode", "fast", timings=[timing(2.05, long_shapes, "decode")]),
        wrong("linear", "fast", Verdict.IMPORT_ERROR, traceback, cases=[], nulls=[]),
        wrong("rms_norm", "tail", Verdict.INCORRECT_NUMERICAL, "y[0, 61] is 0, expected -1.23 within 0.001."),
        wrong("rotary_embedding", "cache", Verdict.CHEATING, HOSTILE, witness=HOSTILE, timings=[timing(9.0)]),
        record(
            "embedding", "it's <b>odd</b> & /", timings=[timing(1.0)],
            source=f"# {HOSTILE}\nx = '''{HOSTILE}\n'''\n",
        ),
        record(
            "greedy_sample", "fast", Verdict.UNTESTABLE, message="Wrong answers pass.", cases=[],
            nulls=[NullRecord("bfloat16", "zeros", "passed"), NullRecord("bfloat16", "mean", "not applicable")],
        ),
        record("vocab_parallel_embedding", "fast", level=2),
    ]  # fmt: skip


def write_run(
    path: Path,
    found: list[OpRecord] | None = None,
    *,
    is_finished: bool = True,
    request: dict[str, Any] = REQUEST,
    **environment: Any,
) -> Path:
    """A run folder as a sweep leaves it; unfinished without results.json."""
    merged = {name: value for name, value in {**ENVIRONMENT, **environment}.items() if value is not None}
    folder = RunFolder.create("kernels", request, merged, path)
    for entry in records() if found is None else found:
        entry_path = path / "ops" / f"{abs(hash((entry.implementation, entry.op)))}.json"
        folder._write(entry_path, entry.to_json())
    if is_finished:
        ceilings = {
            "device": "cuda", "copy_bytes_per_s": 4.1e12, "flops_per_s": {"bfloat16": 7.2e14}, "flush_bytes": 120 << 20,
        }  # fmt: skip
        folder.finish(status="finished", seconds=321.0, ceilings=ceilings, case_hashes={"rms_norm": ["ab" * 32] * 3})
    return path


_MANIFEST = load_manifest()
MANIFEST = {"version": _MANIFEST.version, "sha256": _MANIFEST.sha256}
SCENARIO_SET = "few"
NUM_PASSES, NUM_ALONE = 4, 12
"""Passes of the throughput workload, of one request each, and requests of the latency workload."""
EVAL_REQUEST = {"scenarios": SCENARIO_SET, "candidates": ["fast", "fragile"], "device": "cpu", "restarts": 3}
CPU = {"device": "cpu", "gpu": None}


def passes(speedup: float, seed: str, num_restarts: int = 3) -> list[PassRecord]:
    """Throughput and latency workloads; latency gains half of what throughput does."""
    generator = random.Random(seed)
    found = []
    for restart in range(num_restarts):
        for workload, kind, ratio, count in (
            ("balanced x1", "throughput", speedup, NUM_PASSES),
            (f"single x{NUM_ALONE}", "latency", 1 + (speedup - 1) / 2, NUM_ALONE),
        ):
            seconds = [0.05 * generator.lognormvariate(0, 0.004) for _ in range(count)]
            candidate = [s / ratio * generator.lognormvariate(0, 0.004) for s in seconds]
            found.append(PassRecord(restart, workload, kind, seconds, candidate))
    return found


def replaced(op: str, name: str, status: str = "REPLACED", num_calls: int = 24, rank: int = 0) -> dict[str, Any]:
    error = None if status in ("REPLACED", "NEVER_CALLED") else f"{op}.py does not import: {HOSTILE}"
    return {
        "op": op, "set": name, "status": status, "num_calls": num_calls if status == "REPLACED" else 0, "num_traced": 0,
        "rank": rank, "error": error,
    }  # fmt: skip


def of_all(values: Sequence[float], num_restarts: int = 3) -> list[float]:
    """As many as an item has requests or pairs, over and over."""
    count = num_restarts * (NUM_PASSES + NUM_ALONE) if values else 0
    return [values[i % len(values)] for i in range(count)]


def set_sha256(name: str) -> str:
    return name.encode().hex().ljust(64, "0")[:64]


def item(model: str, family: str, name: str, speedup: float = 1.0, **changed: Any) -> ItemRecord:
    """discrepancies: of some requests, which those of all repeat."""
    num_ranks = changed.get("num_ranks", 1)
    thresholds = _MANIFEST.thresholds(family, "bfloat16")
    some = changed.pop("discrepancies", [0.4 * thresholds.good, 0.0, 0.9 * thresholds.good])
    values: dict[str, Any] = {
        "item": f"{model}-bfloat16" + (f"-tp{num_ranks}" if num_ranks > 1 else ""),
        "model": model,
        "architecture": model.removeprefix("tiny-"),
        "family": family,
        "dtype": "bfloat16",
        "num_ranks": 1,
        "implementation": name,
        "outcome": "MEASURED",
        "thresholds": asdict(thresholds),
        "replacements": [
            replaced("rms_norm", name),
            {"rank": 0, "op": "top_logprobs", "class": None, "set": name, "status": "NEVER_CALLED", "num_calls": 0},
        ],  # of both forms that there are
        "discrepancies": of_all(some),
        "figures": {"regret": 0.0012},
        "passes": passes(speedup, f"{model}{name}"),
        "reference_noise": of_all([0.001, -0.002, 0.0015]),
        "seconds": 41.5,
        "set_sha256": set_sha256(name),
    }
    return ItemRecord(**{**values, **changed})


def broken(model: str, family: str, name: str, outcome: str, reason: str, **changed: Any) -> ItemRecord:
    nothing: dict[str, Any] = {"discrepancies": [], "passes": [], "reference_noise": [], "replacements": []}
    return item(model, family, name, outcome=outcome, reason=reason, **{**nothing, **changed})


def eval_items() -> list[ItemRecord]:
    """Two sets over six scenarios: wins, a loss, a tie, wrong answers, a crash with a part that works, and the rest."""
    kept = item("tiny-mixtral", "language", "fragile", 1.2)
    crash = f"Traceback (most recent call last):\n  File 'L2/moe.py', line 3\nRuntimeError: {HOSTILE}"
    return [
        item("tiny-llama", "language", "fast", 1.30),
        item("tiny-mixtral", "language", "fast", 1.12),
        item("tiny-dinov3", "embedding", "fast", 1.003),
        item("tiny-sdxl", "image", "fast", 0.90),
        item("tiny-whisper", "speech", "fast", 1.25, discrepancies=[0.0, 0.2, 0.5]),
        broken("tiny-gpt-oss", "language", "fast", "BLOCKED", "TOO_FEW_DEVICES", num_ranks=8, message="8 of 1 GPUs."),
        item("tiny-llama", "language", "fragile", 1.1),
        broken(
            "tiny-mixtral", "language", "fragile", "INVALID", "CRASH", message=crash,
            replacements=[replaced("moe_sum", "fragile"), replaced("rms_norm", "fragile", "IMPORT_ERROR")],
            subset=SubsetRecord({"moe_sum": crash}, ["rms_norm"], kept),
        ),
        broken("tiny-dinov3", "embedding", "fragile", "NEVER_CALLED", "", replacements=[
            replaced("rms_norm", "fragile", "NEVER_CALLED")]),
        broken("tiny-sdxl", "image", "fragile", "INVALID", "TIMEOUT", message="No answer in 60 s.",
               subset=SubsetRecord({"rms_norm": "TIMEOUT"}, [], None)),
        broken("tiny-whisper", "speech", "fragile", "INVALID", "NOT_FINITE", message="logits[0, 3] is nan."),
        broken("tiny-gpt-oss", "language", "fragile", "BLOCKED", "TOO_FEW_DEVICES", num_ranks=8),
    ]  # fmt: skip


def eval_sets(items: list[ItemRecord]) -> list[SetRecord]:
    names = dict.fromkeys(i.implementation for i in items)
    return [SetRecord(name, f"sets/{name}", ["rms_norm", "moe_sum"], set_sha256(name)) for name in names]


def scenarios_of(items: Sequence[ItemRecord]) -> dict[str, Any]:
    """What a run of these items is of, as its JSON has it."""
    workloads = {
        "throughput": [{"name": "balanced", "num_requests": 1, "scale": 1.0}],
        "latency": [{"name": "single", "num_requests": NUM_ALONE, "scale": 1.0}],
    }
    places = dict.fromkeys((i.model, i.dtype, i.num_ranks) for i in items)
    named = [dict(zip(("model", "dtype", "tensor_parallel_size"), place, strict=True)) for place in places]
    return {
        "name": SCENARIO_SET,
        "scenarios": [{**one, **workloads} for one in named],
        **{"num_restarts": 3, "num_passes": NUM_PASSES, "num_checked": 64, "pass_seconds": 60.0},
    }


def write_eval_run(
    path: Path, found: list[ItemRecord] | None = None, *, is_finished: bool = True, **changed: Any
) -> Path:
    """A run folder as an evaluation leaves it. changed: environment, or what results.json has at the top."""
    items = eval_items() if found is None else found
    environment = {**ENVIRONMENT, **CPU, **changed.pop("environment", {})}
    merged = {name: value for name, value in environment.items() if value is not None}
    folder = RunFolder.create("eval", EVAL_REQUEST, merged, path)
    if is_finished:
        name = changed.get("scenario_set", SCENARIO_SET)
        extra = {
            "status": "finished", "seconds": 512.0, "eval_schema_version": EVAL_SCHEMA_VERSION,
            "scenario_set": name, "scenarios": {**scenarios_of(items), "name": name}, "manifest": MANIFEST,
            "sets": [asdict(s) for s in eval_sets(items)], "items": [i.to_json() for i in items],
        }  # fmt: skip
        scores = changed.pop("scores", None)
        found_scores = set_scores({"kind": "eval", **extra}) if scores is None else scores
        of_parts = part_scores({"kind": "eval", **extra})
        folder.finish(**{**extra, "scores": found_scores, "subset_scores": of_parts, **changed})
    return path
