"""What the repeats come to: medians, ratios with intervals, agreement of the tokens; and parts put together."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

Json = dict[str, Any]
NUM_RESAMPLES = 10_000
BARS = {
    "single": 1.15,
    "batch32": 1.08,
    "decode_heavy": 1.08,
    "balanced": 1.05,
    "prefill_heavy": 0.98,
    "azure_conv": 1.08,
}
"""The least throughput of ours over vLLM's that is aimed at with Llama."""


def ratio_interval(ours: Sequence[float], theirs: Sequence[float]) -> Json:
    """Median seconds of theirs over ours (above 1: ours is faster), with a 95 % interval by resampling each side."""
    generator = random.Random(0)
    ratios = sorted(
        median(generator.choices(theirs, k=len(theirs))) / median(generator.choices(ours, k=len(ours)))
        for _ in range(NUM_RESAMPLES)
    )
    tail = int(0.025 * NUM_RESAMPLES)
    return {"ratio": median(theirs) / median(ours), "low": ratios[tail], "high": ratios[-1 - tail]}


def side(repeats: Sequence[Json]) -> Json:
    """One engine's figures at its median seconds."""
    seconds = median(r["seconds"] for r in repeats)
    first = repeats[0]
    num_tokens = first["num_prompt_tokens"] + first["num_output_tokens"]
    return {
        "seconds": seconds,
        "all_seconds": [r["seconds"] for r in repeats],
        "output_tokens_per_s": first["num_output_tokens"] / seconds,
        "total_tokens_per_s": num_tokens / seconds,
        "requests_per_s": first["num_requests"] / seconds,
        "digests": sorted({r["digest"] for r in repeats}),
    }


def summarised(scenario: Json) -> Json:
    """The scenario with its medians and ratio, from the repeats that are no warm-up."""
    measured = [r for r in scenario["repeats"] if not r["is_warmup"]]
    found = {**scenario}
    for engine in ("ours", "vllm"):
        repeats = [r for r in measured if r["engine"] == engine]
        if repeats:
            found[engine] = side(repeats)
    if "ours" in found and "vllm" in found:
        found |= ratio_interval(found["ours"]["all_seconds"], found["vllm"]["all_seconds"])
        bar = scenario["bar"] if "bar" in scenario else BARS.get(scenario["name"])
        found["bar"] = bar
        found["is_bar_met"] = bar is not None and found["ratio"] >= bar
    return found


def merged(files: Sequence[Json], newest: bool = False) -> Json:
    """Runs of different scenarios, or more repeats of the same, as one record; each part keeps its own settings.

    files: runs, or records that were merged before. newest: a scenario measured again takes the place of the one
    before, which is kept in "superseded".
    """
    scenarios: dict[str, Json] = {}
    superseded: list[Json] = []
    parts: list[Json] = []
    for file in files:
        first = len(parts)
        parts += file.get("parts") or [{key: value for key, value in file.items() if key != "scenarios"}]
        superseded += [_shifted(scenario, first) for scenario in file.get("superseded", ())]
        for name, given in file["scenarios"].items():
            scenario = _shifted(given, first)
            if name not in scenarios:
                scenarios[name] = scenario
            elif newest:
                superseded.append(scenarios[name])
                scenarios[name] = scenario
            else:
                _add_repeats(scenarios[name], scenario)
    keys = ("schema_version", "benchmark", "model", "layers", "note")
    record = {
        **{key: files[0][key] for key in keys if key in files[0]},
        "status": "finished" if all(p["status"] == "finished" for p in parts) else "some parts were cut short",
        "parts": parts,
        "scenarios": {name: summarised(s) for name, s in scenarios.items()},
    }
    return {**record, "superseded": superseded} if superseded else record


def _shifted(scenario: Json, first: int) -> Json:
    """Its repeats say of which part they are, of a record whose parts begin at `first`."""
    return {**scenario, "repeats": [{**r, "part": first + r.get("part", 0)} for r in scenario["repeats"]]}


def _add_repeats(known: Json, scenario: Json) -> None:
    for key in ("num_requests", "num_prompt_tokens", "num_output_tokens"):
        if known[key] != scenario[key]:
            name = scenario["name"]
            raise SystemExit(f"{name} has {known[key]} and {scenario[key]} {key}: not the same scenario.")
    known["repeats"] += scenario["repeats"]
    known["agreement"] = known["agreement"] or scenario["agreement"]


def write(path: Path, record: Json) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)


def table(record: Json) -> str:
    lines = [
        f"{'scenario':14} {'ours s':>9} {'vLLM s':>9} {'ours tok/s':>11} {'vLLM tok/s':>11} {'ratio':>7}"
        f" {'95 % interval':>17} {'bar':>5}  equal tokens"
    ]
    for name, s in record["scenarios"].items():
        cells = [s.get(engine, {}) for engine in ("ours", "vllm")]
        seconds = " ".join(f"{c['seconds']:9.3f}" if c else f"{'-':>9}" for c in cells)
        speeds = " ".join(f"{c['output_tokens_per_s']:11,.1f}" if c else f"{'-':>11}" for c in cells)
        ratio = f"{s['ratio']:7.3f} [{s['low']:7.3f},{s['high']:7.3f}]" if "ratio" in s else f"{'-':>7} {'':17}"
        bar = f"{s['bar']:5.2f}" if s.get("bar") else f"{'-':>5}"
        equal = f"{s['agreement']['share_equal']:.1%}" if s.get("agreement") else "-"
        lines.append(f"{name:14} {seconds} {speeds} {ratio} {bar}  {equal}")
    for part in record.get("parts", [record]):
        for name, engine in part.get("engines", {}).items():
            lines.append(
                f"{name}: {engine['startup_seconds']:.1f} s from start to ready "
                f"({engine['building_seconds']:.1f} s in its constructor), weights {engine['weights']}, "
                f"KV tokens {engine['kv_tokens']}"
            )
    return "\n".join(lines)
