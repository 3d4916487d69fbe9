"""The files of a checkpoint directory: its configuration, and where its tensors are. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastkernels.errors import CheckpointError

COMPONENTS = "model_index.json"
"""Of a directory of components."""
_INDEXES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json")


def checkpoint_config(directory: Path) -> dict[str, Any]:
    """The config.json of a checkpoint directory; of a directory of components their configurations by name.

    The latter has a model_index.json, in which each component's [library, class] is replaced by its own configuration,
    where it has one.
    Errors: CheckpointError when there is none or it is not a JSON object.
    """
    if is_of_components(directory):
        index = read_json(directory / COMPONENTS)
        return {name: _component_config(directory / name) or value for name, value in index.items()}
    return read_json(directory / "config.json")


def is_of_components(directory: Path) -> bool:
    """Whether it holds several models, each in a folder of its own."""
    return not (directory / "config.json").is_file() and (directory / COMPONENTS).is_file()


def _component_config(folder: Path) -> dict[str, Any] | None:
    for name in ("config.json", "scheduler_config.json"):
        if (folder / name).is_file():
            return read_json(folder / name)
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint. Errors: CheckpointError when the file is missing, no JSON or no object."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} is no checkpoint: it has no {path.name}.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}, not an object.")
    return config


def safetensors_files(directory: Path) -> list[Path]:
    """The files of a checkpoint, from its index when it has one; model.fp16.safetensors only without the whole ones.

    Errors: CheckpointError when there is none, or one that the index names is missing.
    """
    index = next((directory / name for name in _INDEXES if (directory / name).exists()), None)
    if index is not None:
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is not an index of safetensors files: {error!r}") from error
        files = [directory / Path(str(name)).name for name in names]
    else:
        files = sorted(directory.glob("*.safetensors"))
        files = [file for file in files if "." not in file.stem] or files
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise CheckpointError(f"{directory} lacks {', '.join(missing) or 'any *.safetensors file'}.")
    return files
