"""Runs made up for the tests of reports: records of the real classes, every kind of outcome, hostile text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from fastkernels.bench.run_folder import RunFolder
from fastkernels.harness.records import CaseRecord, NullRecord, OpRecord, Samples, TimingRecord
from fastkernels.harness.timing import BASELINE, CANDIDATE
from fastkernels.harness.verdict import Speed, Verdict

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


def samples(side: str, center_us: float, generator: random.Random, clocks: dict[str, Any]) -> list[Samples]:
    found = []
    for restart in range(2):
        for block in (-1, 0, 1, 2, 3):
            times = [int(1000 * center_us * generator.lognormvariate(0, 0.05)) for _ in range(4)]
            claims = [t + 9000 for t in times]
            found.append(Samples(restart, block, side, True, claims, times, [800], [4000] * 4, clocks))
    found.append(Samples(0, 0, side, False, [1] * 4, [1] * 4, [1], [1] * 4, clocks))
    return found


def timing(ratio: float, shapes: str = "x[4096, 4096]", phase: str = "", **changed: Any) -> TimingRecord:
    generator = random.Random(shapes)
    floor = 0.02
    low, high = ratio * 0.97, ratio * 1.03
    speed = Speed.WIN if low > 1 + floor else Speed.LOSS if high < 1 / (1 + floor) else Speed.TIE
    values: dict[str, Any] = {
        "case": f"captured {shapes}",
        "phase": phase,
        "dtype": "bfloat16",
        "shapes": shapes,
        "clock": "device events",
        "ratio": ratio,
        "low": low,
        "high": high,
        "num_pairs": 120,
        "noise_floor": floor,
        "speed": speed.value,
        "baseline_us": 30.0 * ratio,
        "candidate_us": 30.0,
        "warm_baseline_us": 20.0 * ratio,
        "warm_candidate_us": 20.5,
        "graph_baseline_us": 29.0 * ratio,
        "graph_candidate_us": 28.25,
        "num_bytes": 1 << 26,
        "num_flops": 1 << 24,
        "floor_us": 9.0,
        "baseline_roofline_share": 0.6,
        "candidate_roofline_share": 0.875,
        "samples": [
            *samples(BASELINE, 30.0 * ratio, generator, CLOCKS),
            *samples(CANDIDATE, 30.0, generator, CLOCKS),
        ],
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


def record(op: str, name: str, verdict: Verdict = Verdict.PASSED, **changed: Any) -> OpRecord:
    families = ("normal", "heavy_tailed", "integers", "one_hot", "captured")
    values: dict[str, Any] = {
        "op": op,
        "level": 1,
        "implementation": name,
        "source_path": f"/home/somebody/{name}/L1/{op}.py",
        "source_sha256": f"{op}{name}".encode().hex().ljust(64, "0")[:64],
        "device": "cuda",
        "verdict": verdict.value,
        "cases": [case(family=f, scale=(i + 1) / 3) for i, f in enumerate(families)],
        "nulls": [NullRecord("bfloat16", null, "rejected", f"y[0, {i}] is 0") for i, null in enumerate(NULLS)],
        "num_calls": 412,
        "peak_memory_bytes": 3 << 30,
        "seconds": 12.5,
        "seed": 12345,
        "confinement": {"network_namespace": True, "landlock": False, "user_id": 65534},
        "source": "import torch\n\n\ndef forward(x):\n    return x * 2  # fast\n",
        "baseline_source": "import torch\n\n\ndef forward(x):\n    return x + x\n",
    }
    return OpRecord(**{**values, **changed})


def wrong(op: str, name: str, verdict: Verdict, message: str, **changed: Any) -> OpRecord:
    cases = [case(), case(verdict, "captured", message=message)]
    return record(op, name, verdict, **{"message": message, "cases": cases, **changed})


def records() -> list[OpRecord]:
    """Wins, ties, losses, every way to fail, and text that would break a careless page."""
    long_shapes = "query[16, 8, 128] key_cache[4096, 16, 8, 128] value_cache[4096, 16, 8, 128] block_table[16, 256]"
    traceback = f"Traceback (most recent call last):\n  File 'L1/linear.py', line 3\nImportError: {HOSTILE}"
    return [
        record("rms_norm", "fast", timings=[timing(1.62), timing(1.31, "x[17, 4096]"), timing(1.004, "x[1, 64]")]),
        record("silu_and_mul", "fast", timings=[timing(0.73, is_launch_bound=True)]),
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


def write_run(path: Path, found: list[OpRecord] | None = None, *, is_finished: bool = True, **environment: Any) -> Path:
    """A run folder as a sweep leaves it; unfinished without results.json."""
    merged = {name: value for name, value in {**ENVIRONMENT, **environment}.items() if value is not None}
    folder = RunFolder.create("kernels", REQUEST, merged, path)
    for entry in records() if found is None else found:
        entry_path = path / "ops" / f"{abs(hash((entry.implementation, entry.op)))}.json"
        folder._write(entry_path, entry.to_json())
    if is_finished:
        ceilings = {
            "device": "cuda", "copy_bytes_per_s": 4.1e12, "flops_per_s": {"bfloat16": 7.2e14}, "flush_bytes": 120 << 20,
        }  # fmt: skip
        folder.finish(status="finished", seconds=321.0, ceilings=ceilings, case_hashes={"rms_norm": ["ab" * 32] * 3})
    return path
