"""Every architecture beside its library of record on a CPU, at tiny sizes in float32: how far apart they are.

    python benchmarks/parity.py --out benchmarks/results/cpu/parity.json

Of each variant: the largest relative error of an answer, of a token's logits and of a module (with its name), and
whether all tokens, boxes and rankings are equal. tests/tasks/test_architectures.py holds the same comparisons to 1e-4.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from fastkernels.bench.environment import environment
from fastkernels.errors import EnvironmentProblem
from fastkernels.oracles.oracle import oracle_of
from fastkernels.oracles.side_by_side import SideBySide, relative_error
from fastkernels.registry import ARCHITECTURES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    record: dict[str, Any] = {"schema_version": 1, "environment": environment("cpu"), "architectures": {}}
    for architecture in ARCHITECTURES:
        try:
            oracle = oracle_of(architecture)
        except EnvironmentProblem as error:
            record["architectures"][architecture.name] = {"missing": str(error)}
            continue
        library = oracle.library or oracle.requires[0].partition(".")[0].replace("_", "-")
        variants = {variant: _variant(architecture, oracle, variant) for variant in oracle.tiny()}
        record["architectures"][architecture.name] = {
            "library": f"{library} {importlib.metadata.version(library)}",
            "variants": variants,
        }
        print(architecture.name, json.dumps(variants), flush=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def _variant(architecture: Any, oracle: Any, variant: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        pair = SideBySide(architecture, oracle, variant, Path(folder))
        expected = pair.expected()
        errors: dict[str, float] = {}
        for given, wanted in zip(pair.answers(pair.requests), expected, strict=True):
            for name in wanted:
                errors[name] = max(errors.get(name, 0.0), relative_error(given[name], wanted[name]))
        if pair.makes_tokens:
            errors["logits"] = max(relative_error(given, wanted) for given, wanted in pair.logits())
        modules = {found.ours: relative_error(found.given, found.wanted) for found in pair.levels()}
    worst = max(modules, key=lambda name: modules[name])
    return {
        "num_requests": len(pair.requests),
        "answers": {name: _digits(error) for name, error in sorted(errors.items())},
        "num_modules": len(modules),
        "worst_module": {"name": worst, "error": _digits(modules[worst])},
    }


def _digits(error: float) -> float | None:
    """None: not equal at all."""
    return None if math.isinf(error) else float(f"{error:.2g}")


if __name__ == "__main__":
    main()
