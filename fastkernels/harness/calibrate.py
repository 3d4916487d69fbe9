"""Measures the production path's own error against the definition and freezes it in tolerances.json.

    python -m fastkernels.harness.calibrate --device cpu

Run where the production path runs: figures of a CPU and of a GPU are merged, the larger one stays.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from fastkernels.bench.environment import environment
from fastkernels.cache import bind_caches
from fastkernels.capture.case import Case
from fastkernels.capture.replay import as_outputs, case_inputs
from fastkernels.context import set_forward_context
from fastkernels.harness.compare import Expected, as_rows, measure
from fastkernels.harness.expect import build_reference, expectation
from fastkernels.harness.groups import Group, make_groups
from fastkernels.harness.pool import flatten
from fastkernels.harness.tolerance import MANIFEST, Error
from fastkernels.registry import OpEntry, ops
from fastkernels.spec import Compare

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Measured = dict[str, dict[str, dict[str, dict[str, float]]]]


def measure_op(entry: OpEntry, device: torch.device, num_shapes: int, seed: int) -> dict[str, dict[str, Error]]:
    """Worst error by dtype and family of the baseline's forward on `device`."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, dict[str, Error]] = {}
    for group in make_groups(entry, [], _DTYPES, num_shapes, device, generator):
        dtype = str(group.dtype).removeprefix("torch.")
        families = found.setdefault(dtype, {})
        for case in (case for pool in group.pools for case in pool):
            error = _case_error(group, case, device)
            families[case.family] = families.get(case.family, Error()).worst(error)
    return found


def _case_error(group: Group, case: Case, device: torch.device) -> Error:
    expected = expectation(group.exact, case, device)
    op = build_reference(group.entry, group.init, group.params, group.dtype, device)
    inputs = case_inputs(case, device)
    caches = [cache.to(device, copy=True) for cache in case.caches]
    if caches:
        bind_caches(op, caches)
    with torch.no_grad(), set_forward_context(case.context.to(device) if case.context else None):
        outputs = as_outputs(op(**inputs))
    after: dict[str, Any] = {f"in:{n}": v for n, v in inputs.items()}
    after |= {f"cache:{i}": cache for i, cache in enumerate(caches)}
    assert set(expected.mutated) <= set(flatten(case))
    pairs = [*zip(expected.outputs, outputs, strict=True), *((e, after[n]) for n, e in expected.mutated.items())]
    worst = Error()
    for wanted, given in pairs:
        if wanted is not None and wanted.compare is Compare.VALUES and given.is_floating_point() and given.numel():
            worst = worst.worst(_error(wanted, given))
    return worst


def _error(wanted: Expected, given: Tensor) -> Error:
    y, x = wanted.value, given.detach().double()
    finite = torch.isfinite(y) & torch.isfinite(x)
    return measure(as_rows(torch.where(finite, y, 0.0)), as_rows(torch.where(finite, x, 0.0)))


def merge(manifest: dict[str, Any], op: str, found: dict[str, dict[str, Error]]) -> None:
    """The larger of what stands and what was found, rounded up to three digits."""
    for dtype, families in found.items():
        for family, error in families.items():
            entry = manifest["measured"].setdefault(op, {}).setdefault(dtype, {}).setdefault(family, {})
            for name, value in zip(("element", "row", "bias", "max_abs"), error.values(), strict=True):
                entry[name] = max(entry.get(name, 0.0), float(f"{1.001 * value:.3g}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ops", nargs="*", help="names; all when left out")
    parser.add_argument("--shapes", type=int, default=24, help="hidden shapes per way of building an op")
    parser.add_argument("--seed", type=int, default=20261120)
    parser.add_argument("--out", default=str(MANIFEST))
    arguments = parser.parse_args()
    manifest = json.loads(MANIFEST.read_text())
    chosen = [e for e in ops().values() if not arguments.ops or e.name in arguments.ops]
    for entry in chosen:
        found = measure_op(entry, torch.device(arguments.device), arguments.shapes, arguments.seed)
        merge(manifest, entry.name, found)
        print(
            entry.name, {d: f"{max((e.row for e in f.values()), default=0):.2g}" for d, f in found.items()}, flush=True
        )
    manifest["provenance"].setdefault("measurements", []).append(
        {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": environment(arguments.device),
            "ops": [entry.name for entry in chosen],
            "shapes": arguments.shapes,
            "seed": arguments.seed,
        }
    )
    with open(arguments.out, "w") as file:
        json.dump(manifest, file, indent=1, sort_keys=True)
        file.write("\n")


if __name__ == "__main__":
    main()
