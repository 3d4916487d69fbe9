"""What a checkpoint says of its preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastkernels.checkpoint_files import read_json


def read_options(checkpoint: Path | None, name: str) -> dict[str, Any]:
    """The JSON object of the file `name`; nothing when there is no such file.

    Errors: CheckpointError when it cannot be read as one.
    """
    path = checkpoint and checkpoint / name
    return {} if path is None or not path.is_file() else read_json(path)
