"""The adversarial suite, whole or by names, and several runs of it put into one file.

    python benchmarks/self_test.py --device cuda --out part1.json
    python benchmarks/self_test.py --device cuda --names S07c_hangs threads_that_join --out part2.json
    python benchmarks/self_test.py --merge part1.json part2.json --out benchmarks/results/h200/self_test.json

`fastkernels kernels --self-test` is the first of these. In a merged file "runs" says what ran when and on what, each
result has the number of its run, and "superseded" keeps what a later run took the place of.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from fastkernels.adversarial.self_test import Result, summary
from fastkernels.cli.self_test import self_test

_FACTS = ("created", "environment", "seconds", "summary")


def merge(parts: list[Path]) -> dict[str, Any]:
    """The last result of every entry; a part may be a merged file."""
    runs: list[dict[str, Any]] = []
    results: dict[str, dict[str, Any]] = {}
    superseded: list[dict[str, Any]] = []
    for part in parts:
        given = json.loads(part.read_text())
        first = len(runs)
        superseded += [{**result, "run": first + result["run"]} for result in given.get("superseded", ())]
        runs += [{key: run[key] for key in _FACTS} for run in given.get("runs", (given,))]
        for result in given["results"]:
            if (before := results.pop(result["name"], None)) is not None:
                superseded.append(before)
            results[result["name"]] = {**result, "run": first + result.get("run", 0)}
    fields = {field.name for field in dataclasses.fields(Result)}
    last = [Result(**{k: v for k, v in result.items() if k in fields}) for result in results.values()]
    return {
        "schema_version": 1,
        "summary": summary(last),
        "runs": runs,
        "results": list(results.values()),
        "superseded": superseded,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--names", nargs="+", default=[])
    parser.add_argument("--merge", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="a .json file")
    arguments = parser.parse_args()
    if not arguments.merge:
        return self_test(arguments.device, arguments.out, arguments.names)
    merged = merge(arguments.merge)
    arguments.out.write_text(json.dumps(merged, indent=1) + "\n")
    print(merged["summary"], f"({len(merged['superseded'])} results of earlier runs superseded)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
