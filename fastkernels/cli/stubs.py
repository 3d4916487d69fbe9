"""`fastkernels stubs`: candidate files to fill in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from fastkernels.agents.stubs import write_stubs
from fastkernels.cli.common import console
from fastkernels.cli.select import select_ops
from fastkernels.errors import UsageError


def stubs(
    target: Annotated[list[str] | None, Option(help="An op, a class, a file or L1/<file>; may be repeated.")] = None,
    level: Annotated[int | None, Option(help="Ops of this level, 1 to 4.")] = None,
    architecture: Annotated[str | None, Option(help="Ops of this architecture.")] = None,
    out: Annotated[Path | None, Option(help="The set's folder; default: the candidate set.")] = None,
) -> None:
    """Write candidate files with the baseline's classes, signatures and specs, and forward left to write.

    With --out alone: one for every op. Files that exist are never overwritten. Errors: UsageError without any choice.
    """
    if not (target or architecture or out) and level is None:
        raise UsageError(
            "Say which: --target, --level or --architecture; for every op, a folder of their own by --out."
        )
    for path in write_stubs(select_ops(target, level, architecture), out):
        console.print(str(path), soft_wrap=True)
