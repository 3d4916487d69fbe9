"""Answers of models that run on the ops' definitions, from a process of their own: an overlay comes before the imports.

python -m fastkernels.calibration.definitions ORDER.json
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastkernels.bench.eval import payload
from fastkernels.errors import EnvironmentProblem, UnsupportedError
from fastkernels.harness.sandbox import die_with_parent
from fastkernels.sets import named_set

SET = "reference"
_SECONDS = 1800.0
_SHOWN = 1200


class Definitions:
    """By model and dtype."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._found = found

    def answers(self, model: str, dtype: str) -> Any:
        return self._found[f"{model}/{dtype}"]


def run_definitions(models: Mapping[str, int], dtypes: Sequence[str], seed: int) -> Definitions:
    """models: how many requests each is sent; they are those of Subject with the same seed.

    Errors: EnvironmentProblem when the process ends without answers.
    """
    with tempfile.TemporaryDirectory() as folder:
        order, out = Path(folder) / "order.json", Path(folder) / "answers"
        order.write_text(json.dumps({"models": models, "dtypes": dtypes, "seed": seed, "out": str(out)}))
        command = [sys.executable, "-m", "fastkernels.calibration.definitions", str(order)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise EnvironmentProblem(f"The definitions of {', '.join(models)} took over {_SECONDS:.0f} s.") from error
        if done.returncode or not out.is_file():
            raise EnvironmentProblem(
                f"The definitions of {', '.join(models)} ended with {done.returncode}: {done.stderr[-_SHOWN:]}"
            )
        return Definitions(payload.unpack(out.read_bytes()))


def main(path: str) -> None:
    die_with_parent()
    order = json.loads(Path(path).read_text())
    from fastkernels.overlay import install

    install([named_set(SET)])
    from fastkernels.calibration.noise import threads
    from fastkernels.calibration.subject import Subject

    found = {}
    with threads(1):
        for model, num in order["models"].items():
            for dtype in order["dtypes"]:
                with contextlib.suppress(UnsupportedError):
                    found[f"{model}/{dtype}"] = Subject(model, dtype, num, order["seed"]).answers()
    Path(order["out"]).write_bytes(payload.pack(found))


if __name__ == "__main__":
    main(sys.argv[1])
