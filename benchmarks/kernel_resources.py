"""What every Triton and Gluon kernel takes of an H200, by the compiler: registers, spills, shared memory.

    python benchmarks/kernel_resources.py --out benchmarks/results/sm90/kernel_resources.json
    python benchmarks/kernel_resources.py --only flash_attn --dtypes bfloat16

Needs no GPU: Triton compiles for compute capability 9.0 with the assembler that it brings along. These are facts of
compilation and not speeds: a kernel that spills nothing may be slow, and one that spills a little may not be.
Launches are those of fastkernels/kernels/launches/, at the sizes of the published models. Every kernel is compiled
anew; "seconds" are of the machine as it was, with whatever else ran on it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from triton import knobs

import fastkernels.kernels
from fastkernels.bench.environment import environment
from fastkernels.dtypes import find_dtype
from fastkernels.kernels.ahead import H200, Compiled, compiling_for, package_kernels
from fastkernels.kernels.launch import Launch, without_launch
from fastkernels.kernels.launches import launches


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16", "float32"])
    parser.add_argument("--only", default="", help="launches whose model and name hold this text")
    parser.add_argument("--out", type=Path, help="a .json file")
    arguments = parser.parse_args()
    dtypes = [find_dtype(name) for name in arguments.dtypes]
    asked = [launch for launch in launches() if arguments.only in f"{launch.model} {launch.name}"]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope():
        knobs.cache.dir = folder
        found, failures = _compile_all(asked, dtypes)
    kernels = sorted(found.items(), key=lambda item: (item[0].spill_store_bytes, item[0].shared_bytes))
    lacking = [] if arguments.only else without_launch(package_kernels(fastkernels.kernels), found)
    _print(kernels, failures, lacking)
    record = {
        "schema_version": 1,
        "target": {"name": "NVIDIA H200", **H200._asdict()},
        "ptxas": _ptxas_version(),
        "environment": environment("cpu"),
        "seconds": round(time.monotonic() - started, 1),
        "kernels": [{**asdict(kernel), "problems": kernel.problems(), "launches": names} for kernel, names in kernels],
        "failures": failures,
        "without_launch": lacking,
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if failures or lacking or any(kernel.problems() for kernel in found) else 0


def _compile_all(
    asked: list[Launch], dtypes: list[torch.dtype]
) -> tuple[dict[Compiled, list[str]], list[dict[str, str]]]:
    """Each kernel with the launches that need it; launches of one kernel differ in their grids alone."""
    found: dict[Compiled, tuple[Compiled, list[str]]] = {}
    failures: list[dict[str, str]] = []
    for launch in asked:
        for dtype in dtypes:
            if dtype not in launch.dtypes:
                continue
            name = f"{launch.model}: {launch.name} ({str(dtype).removeprefix('torch.')})"
            try:
                with torch.inference_mode(), compiling_for() as compiled:
                    launch.call(dtype)
            except Exception as error:
                failures.append({"launch": name, "error": f"{type(error).__name__}: {error}"})
                continue
            for kernel in compiled:
                same = replace(kernel, seconds=None, grid=(0, 0, 0))
                known, names = found.get(same, (kernel, []))
                largest = max(known.grid, kernel.grid)
                found[same] = (replace(known, seconds=known.seconds or kernel.seconds, grid=largest), [*names, name])
    return dict(found.values()), failures


def _print(kernels: list[tuple[Compiled, list[str]]], failures: list[dict[str, str]], lacking: list[str]) -> None:
    """The worst of each kernel, by spills and then by shared memory, the worst last."""
    print(f"{'kernel':58} {'variants':>8} {'warps':>5} {'registers':>9} {'spilled':>7} {'shared':>7}  worst launch")
    for is_16_bit in (False, True):
        worst: dict[str, tuple[Compiled, str]] = {}
        chosen = [(k, names) for k, names in kernels if any("float32)" not in name for name in names) == is_16_bit]
        for kernel, names in chosen:
            worst.pop(kernel.kernel, None)
            worst[kernel.kernel] = (kernel, names[0])
        print("16-bit activations" if is_16_bit else "float32")
        for name, (kernel, launch) in worst.items():
            count = sum(k.kernel == name for k, _ in chosen)
            figures = (kernel.num_warps, kernel.num_registers, kernel.spill_store_bytes, kernel.shared_bytes)
            print(f"{name:58} {count:8} {figures[0]:5} {figures[1]:9} {figures[2]:7} {figures[3]:7}  {launch}")
    for kernel, names in kernels:
        for problem in kernel.problems():
            print(f"CANNOT BE LAUNCHED {kernel.kernel}: {problem} ({names[0]})")
    for failure in failures:
        print(f"DOES NOT COMPILE {failure['launch']}: {failure['error']}")
    for name in lacking:
        print(f"NO LAUNCH {name}")
    times = [kernel.seconds for kernel, _ in kernels if kernel.seconds]
    print(f"{len(kernels)} kernels, {sum(times):.0f} s of compiling, {max(times, default=0):.1f} s the longest")


def _ptxas_version() -> str:
    command: list[Any] = [knobs.nvidia.ptxas.path, "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


if __name__ == "__main__":
    raise SystemExit(main())
