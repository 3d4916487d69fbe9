"""Which kernels the time of an architecture's load goes to: `python benchmarks/kernel_profile.py gaussian_splatting`.

Ours as it is measured by architectures.py (replays of a CUDA graph where the engine has one), then the library's as it
is, each warm. By kernel: launches a call, microseconds a call, the longest launch; what is left of a call's time is
waiting. On a CPU (`--tiny --device cpu`) torch's operators stand for kernels.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from fastkernels.bench.environment import environment  # noqa: E402
from fastkernels.oracles.measure import Measurement, Settings, ms_a_call  # noqa: E402
from fastkernels.oracles.oracle import oracle_of  # noqa: E402
from fastkernels.registry import architecture  # noqa: E402


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a registered architecture")
    parser.add_argument("--load", help="of its loads; left out: the first")
    parser.add_argument("--batch", type=int, nargs="+", help="left out: the load's own")
    parser.add_argument("--layers", type=int, help="fewer than published")
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the oracle's test-size configuration")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(words)
    entry = architecture(given.name)
    oracle = oracle_of(entry)
    sizes = next(iter(oracle.tiny().values())) if given.tiny else oracle.published(given.layers or oracle.most_layers)
    built = Measurement(entry, oracle, sizes, Settings(given.device, given.dtype))
    load = next(load for load in oracle.loads if given.load in (None, load.name))
    records = []
    with torch.inference_mode():
        for batch in given.batch or load.batches:
            requests = oracle.load(sizes, batch, load.name)
            sides: dict[str, Callable[[], Any]] = {"ours": built.ours.call(load, requests)}
            if load.is_whole:
                sides["library"] = partial(oracle.run, built.theirs, requests)
            else:
                states = oracle.batch(built.theirs, [built.ours.prepare(request) for request in requests])
                sides["library"] = partial(oracle.forward, built.theirs, states)
            for side, call in sides.items():
                record = {"load": load.name, "batch": batch, "side": side, **profiled(call, given.calls, built.device)}
                records.append(record)
                print_record(record)
    if given.out is not None:
        report = {"architecture": entry.name, "environment": environment(given.device), "records": records}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def profiled(call: Callable[[], Any], num_calls: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds of a call without the profiler, and its kernels from the costliest on."""
    for _ in range(3):
        call()
    ms = ms_a_call(call, num_calls, device)
    is_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as prof:
        for _ in range(num_calls):
            call()
        if is_cuda:
            torch.cuda.synchronize(device)
    launches: dict[str, list[float]] = defaultdict(list)
    for event in prof.events() or ():
        if event.device_type == (DeviceType.CUDA if is_cuda else DeviceType.CPU):
            time = event.self_device_time_total if is_cuda else event.self_cpu_time_total
            launches[event.name].append(time)
    kernels = [
        {
            "kernel": name,
            "launches": round(len(times) / num_calls, 2),
            "microseconds": round(sum(times) / num_calls, 2),
            "longest": round(max(times), 2),
        }
        for name, times in launches.items()
    ]
    return {"ms": round(ms, 4), "kernels": sorted(kernels, key=lambda kernel: -float(str(kernel["microseconds"])))}


def print_record(record: dict[str, Any]) -> None:
    busy = sum(kernel["microseconds"] for kernel in record["kernels"])
    print(f"{record['load']}, {record['batch']}, {record['side']}: {record['ms']} ms a call, kernels {busy:.0f} us")
    for kernel in record["kernels"][:40]:
        print(f"  {kernel['microseconds']:10.2f} us {kernel['launches']:7.2f} x  {kernel['kernel'][:110]}")


if __name__ == "__main__":
    main()
