"""The records of the shipped checkpoints in one file: `python -m fastkernels.training.curves --out FILE`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from fastkernels.checkpoint_files import read_json
from fastkernels.cli.common import reports_errors
from fastkernels.engine.model_source import shipped_checkpoints
from fastkernels.training.release import RECORD


def collected() -> dict[str, Any]:
    """By name: how each was trained and on what, its losses and what it reaches on held-out data."""
    records = {name: read_json(folder / RECORD) for name, folder in shipped_checkpoints().items()}
    return {"schema_version": 1, "checkpoints": records}


def curves(out: Annotated[Path, Option(help="The JSON file to write.")]) -> None:
    """Write the shipped checkpoints' training records to one file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(collected(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(reports_errors(curves))
