"""Scripts that each need a process of their own: forks of one that has torch imported, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_BOOT = """
import json, os, sys, traceback
import torch
from fastkernels import overlay

orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
for line in orders:
    order = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(order["out"], os.O_WRONLY), 1)
        os.dup2(os.open(order["err"], os.O_WRONLY), 2)
        sys.argv = ["-c", *order["arguments"]]
        code = 0
        try:
            exec(compile(order["script"], "<script>", "exec"), {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
"""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


class Forks:
    """A process with torch and the overlay imported, no op yet; a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def run(self, script: str, arguments: Sequence[object] = ()) -> Done:
        """A script with these words as sys.argv[1:], in a fork."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
            order = {"script": script, "arguments": [*map(str, arguments)], "out": out.name, "err": err.name}
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            return Done(code, Path(out.name).read_text(), Path(err.name).read_text())
