"""Times ops' kernels beside what torch and other libraries offer for them, with their shares of the roofline.

    python benchmarks/op_kernels.py --out DIR
    python benchmarks/op_kernels.py experts states --out DIR
    TRITON_INTERPRET=1 python benchmarks/op_kernels.py --device cpu

Writes DIR/GROUP.json for each group: those of op_groups/, at the sizes of the published models. Of each row it says the
microseconds of the production path, of implementation sets whose library is installed, of calls of torch, and of the
definition, all taking turns; bytes and flops are those of the op's `cost`. A share of the roofline is what the device
needs at least, by the bandwidth of a copy and the rate of a matrix product measured in the same process, of what the
path took. "differs" holds each path's answer against ours. --seconds ends a group between two rows.

The last is a rehearsal at tiny sizes whose times mean nothing; without the variable definitions stand in for kernels.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from kernel_timing import environment
from op_groups.bench import DEFINITION, OURS, Bench, Row

from fastkernels.harness.ceilings import Ceilings

GROUPS = ("attention", "decode", "experts", "gates", "norms", "scenes", "states", "tables", "vision")
_MOST_UNLIKE = 0.05
"""Answers in half precision differ by less."""


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "groups", nargs="*", metavar="GROUP", help=f"all of them when none is named: {', '.join(GROUPS)}"
    )
    parser.add_argument("--out", type=Path, help="a folder; of one group also a .json file")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=110.0, help="after which a group begins no further row")
    given = parser.parse_args(words)
    names = given.groups or list(GROUPS)
    if unknown := [name for name in names if name not in GROUPS]:
        parser.error(f"there is no group {unknown[0]!r}; there are {', '.join(GROUPS)}")
    is_file = given.out is not None and given.out.suffix == ".json"
    if is_file and len(names) != 1:
        parser.error(f"--out {given.out} is one file; {len(names)} groups need a folder")
    torch.manual_seed(0)
    is_real = given.device != "cpu"
    ceilings = Ceilings.measured(given.device) if is_real else None
    bench = Bench(given.device, ceilings)
    code = 0
    for name in names:
        out = given.out if given.out is None or is_file else given.out / f"{name}.json"
        report = measured(name, bench, given.seconds, out)
        print(table(report), flush=True)
        code = code or int("error" in report or any(OURS in row["lacking"] for row in report["rows"]))
    return code


def measured(name: str, bench: Bench, seconds: float, out: Path | None) -> dict[str, Any]:
    """A group's report, which is whole in `out` after every row."""
    where = {"device": "cpu", "note": "a rehearsal"} if bench.is_rehearsal else environment()
    where["timing"] = "medians; all paths of a row take turns, as CUDA graphs over inputs that exceed the L2 cache"
    ceilings = None if bench.ceilings is None else bench.ceilings.to_json()
    report: dict[str, Any] = {"group": name, "environment": where, "ceilings": ceilings, "seconds": 0.0, "rows": []}
    started = time.monotonic()
    try:
        with torch.inference_mode():
            for row in importlib.import_module(f"op_groups.{name}").rows(bench):
                report["rows"].append(asdict(row))
                taken = time.monotonic() - started
                report["seconds"] = round(taken, 1)
                write(report, out)
                if taken > seconds:
                    report["error"] = f"--seconds {seconds:g} were over; rows behind the last one are not measured"
                    break
    except Exception as error:
        report["error"] = f"{type(error).__name__}: {error}"[:300]
    write(report, out)
    return report


def write(report: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def table(report: dict[str, Any]) -> str:
    """One line a row: ours with its share, then the other paths' microseconds."""
    lines = [f"{report['group']}, {report['seconds']:.0f} s"]
    for content in report["rows"]:
        row = Row(**content)
        others = [f"{name} {us:.1f}" for name, us in row.microseconds.items() if name != OURS]
        others += [f"{name} unlike by {by:.1g}" for name, by in row.differs.items() if not by <= _MOST_UNLIKE]
        others += [f"{name}: {why}" for name, why in row.lacking.items() if name in (OURS, DEFINITION)]
        share = f"{100 * row.roofline_share[OURS]:4.0f} % of {row.bound}" if OURS in row.roofline_share else ""
        ours = f"{row.microseconds[OURS]:9.1f} us" if OURS in row.microseconds else f"{'failed':>12s}"
        lines.append(f"{row.op:20.20s} {row.model:20.20s} {row.shape:44s} {ours} {share:15s} | {', '.join(others)}")
    return "\n".join([*lines, report["error"]] if "error" in report else lines)


if __name__ == "__main__":
    sys.exit(main())
