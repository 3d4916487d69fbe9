"""Measures the production path's own error against the definition and freezes it in harness/measured.

    python -m fastkernels.harness.calibrate --device cpu --ops rms_norm
    python -m fastkernels.harness.calibrate --device cuda --out measured_on_a_gpu
    python -m fastkernels.harness.calibrate --merge measured_on_a_gpu

Run where the production path runs: figures of a CPU and of a GPU are merged, the larger one stays. Ill-conditioned
rows are left out: the judge widens their bounds by their own condition (compare.RowNoise).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastkernels.bench.environment import environment
from fastkernels.bench.sweep import require_device
from fastkernels.cache import bind_caches
from fastkernels.capture.case import Case
from fastkernels.capture.replay import as_outputs, case_inputs
from fastkernels.cli.common import reports_errors
from fastkernels.context import set_forward_context
from fastkernels.errors import UnknownNameError, UsageError
from fastkernels.harness.compare import Expected, RowNoise, finite_rows, measure
from fastkernels.harness.expect import Expectation, build_reference, expectation
from fastkernels.harness.groups import make_groups
from fastkernels.harness.measurements import FIELDS, FOLDER, Errors, read_record, write_record
from fastkernels.harness.tolerance import Error, chance_bias, unit_roundoff
from fastkernels.registry import OpEntry, ops
from fastkernels.spec import Compare

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_CPU = torch.device("cpu")

Measured = dict[str, dict[str, dict[str, Error]]]
"""By dtype, family and output."""
IsEnough = Callable[[str, str, str, Error], bool]
"""Of the error of one case, by dtype, family and output."""


def measure_op(
    entry: OpEntry, device: torch.device, num_shapes: int, seed: int, is_enough: IsEnough = lambda *_: False
) -> Measured:
    """Worst error by dtype, family and output of the baseline's forward on `device`, against the definition on the CPU:
    its shapes are small and its loops long, a GPU would spend its time on launches.

    is_enough: of what errors it does not matter that ill-conditioned rows are still counted. To know these rows the
    definition is computed NUM_NOISE_DRAWS times more, which is nearly all that measuring costs.
    """
    generator = torch.Generator().manual_seed(seed)
    found: Measured = {}
    pooled: dict[tuple[str, str, str], tuple[float, int]] = {}
    for group in make_groups(entry, [], _DTYPES, num_shapes, _CPU, generator):
        dtype = str(group.dtype).removeprefix("torch.")
        families = found.setdefault(dtype, {})
        op = build_reference(group.entry, group.init, group.params, group.dtype, device)
        for case in (case for pool in group.pools for case in pool):
            outputs = families.setdefault(case.family, {})
            expected = expectation(group.exact, case, _CPU)
            for name, answer in answers_of(op, case, expected, device).items():
                wanted = next(e for e in expected.compared if e.name == name)
                if wanted.compare is Compare.VALUES and answer.is_floating_point() and answer.numel():
                    error, before = error_of(wanted, answer, None), outputs.get(name, Error())
                    counts = before.worst(error) != before and not is_enough(dtype, case.family, name, error)
                    if counts:  # then without its ill-conditioned rows
                        error = error_of(wanted, answer, expected.noise.get(name))
                    squares, num = pooled.get((dtype, case.family, name), (0.0, 0))
                    rows = len(finite_rows(wanted.value, answer.double())[0])
                    pooled[dtype, case.family, name] = squares + rows * error.all_rows**2, num + rows
                    outputs[name] = before.worst(error)
    for (dtype, family, name), (squares, num) in pooled.items():  # over all rows of all shapes: one row is no average
        found[dtype][family][name] = replace(found[dtype][family][name], all_rows=(squares / num) ** 0.5)
    return found


def answers_of(op: torch.nn.Module, case: Case, expected: Expectation, device: torch.device) -> dict[str, Tensor]:
    """What one call of `op` on `device` returns and leaves behind, by the names of `expected`; on the CPU."""
    inputs = case_inputs(case, device)
    caches = [cache.to(device, copy=True) for cache in case.caches]
    if caches:
        bind_caches(op, caches)
    with torch.no_grad(), set_forward_context(case.context.to(device) if case.context else None):
        outputs = as_outputs(op(**inputs))
    after: dict[str, Any] = {f"in:{n}": v for n, v in inputs.items()}
    after |= {f"cache:{i}": cache for i, cache in enumerate(caches)}
    pairs = [*zip(expected.outputs, outputs, strict=True), *((e, after[n]) for n, e in expected.mutated.items())]
    return {wanted.name: given.cpu() for wanted, given in pairs if wanted is not None}


def error_of(wanted: Expected, answer: Tensor, noise: RowNoise | None) -> Error:
    """The error of the rows that are not ill-conditioned; of their bias only what chance does not explain."""
    rows, answers = finite_rows(wanted.value, answer.double())
    if noise is not None:
        rows, answers = rows[~noise.is_ill], answers[~noise.is_ill]
    error = measure(rows, answers, wanted.dtype)
    by_row = error.row / max(len(rows), 1) ** 0.5 if error.row > unit_roundoff(wanted.dtype) else 0.0
    excess = max(0.0, error.bias - max(chance_bias(rows, wanted.dtype), by_row))
    return replace(error, bias=excess)


def merge(known: Errors, found: Measured) -> None:
    """The larger of what stands and what was found, rounded up to three digits."""
    for dtype, families in found.items():
        for family, outputs in families.items():
            fields = {
                output: {
                    name: float(f"{1.001 * value:.3g}") for name, value in zip(FIELDS, error.values(), strict=True)
                }
                for output, error in outputs.items()
            }
            _raise_to(known.setdefault(dtype, {}).setdefault(family, {}), fields)


def _raise_to(known: dict[str, dict[str, float]], found: dict[str, dict[str, float]]) -> None:
    for output, error in found.items():
        entry = known.setdefault(output, {})
        entry |= {name: max(entry.get(name, 0.0), error.get(name, 0.0)) for name in FIELDS}


def merge_folder(folder: Path) -> None:
    """What another machine measured, with where it was measured.

    Errors, before anything is written: UsageError when there is none, or a file is of no op; InputFileError when a file
    is no record.
    """
    if not folder.is_dir():
        raise UsageError(f"--merge {folder}: there is no such folder. Name the one that --out wrote.")
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UsageError(f"--merge {folder}: it holds no <op>.json. Name the folder that --out wrote.")
    for path in paths:
        entry_of(path.stem)
    pairs = [(FOLDER / path.name, read_record(FOLDER / path.name), read_record(path)) for path in paths]
    for path, record, other in pairs:
        for dtype, families in other["errors"].items():
            for family, outputs in families.items():
                _raise_to(record["errors"].setdefault(dtype, {}).setdefault(family, {}), outputs)
        record["measurements"] += [m for m in other["measurements"] if m not in record["measurements"]]
        record["notes"] += [n for n in other["notes"] if n not in record["notes"]]
        write_record(path, record)


def entry_of(name: str) -> OpEntry:
    """Errors: UnknownNameError suggests the nearest."""
    if name not in ops():
        raise UnknownNameError("op", name, ops())
    return ops()[name]


@reports_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ops", nargs="+", help="names; all when left out")
    parser.add_argument("--shapes", type=int, default=24, help="hidden shapes per way of building an op")
    parser.add_argument("--seed", type=int, default=20261120)
    parser.add_argument("--out", type=Path, default=FOLDER, help="a folder; one file an op")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured of these ops before")
    parser.add_argument("--merge", type=Path, help="only take over what this folder holds")
    arguments = parser.parse_args()
    if arguments.merge:
        merge_folder(arguments.merge)
        return
    if arguments.shapes < 1:
        raise UsageError(f"--shapes is {arguments.shapes}; the least is 1.")
    chosen = [entry_of(name) for name in dict.fromkeys(arguments.ops or ops())]
    require_device(arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)  # before the minutes that measuring takes
    for entry in [] if arguments.fresh else chosen:
        read_record(arguments.out / f"{entry.name}.json")
    measurement = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(arguments.device),
        "shapes": arguments.shapes,
        "seed": arguments.seed,
    }
    failed = []
    for number, entry in enumerate(chosen, 1):
        started, place = time.monotonic(), f"{number} of {len(chosen)}: {entry.name}"
        try:
            found = measure_op(entry, torch.device(arguments.device), arguments.shapes, arguments.seed)
        except Exception as error:  # the others can still be measured
            failed.append(entry.name)
            seconds = time.monotonic() - started
            print(f"{place}, {seconds:.1f} s, not measured: {type(error).__name__}: {error}", flush=True)
            continue
        path = arguments.out / f"{entry.name}.json"
        record = read_record(Path() if arguments.fresh else path)
        merge(record["errors"], found)
        record["measurements"].append(measurement)
        write_record(path, record)
        worst = {d: max((e.row for f in fs.values() for e in f.values()), default=0.0) for d, fs in found.items()}
        rows = ", ".join(f"{dtype} {row:.2g}" for dtype, row in worst.items())
        print(f"{place}, {time.monotonic() - started:.1f} s, worst row: {rows}", flush=True)
    if failed:
        raise SystemExit(f"Not measured: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
