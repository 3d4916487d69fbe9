"""What a user calls a model: where its configuration, its checkpoint and its tokenizer are. Imports no torch."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from fastkernels.checkpoint_files import checkpoint_config, read_json
from fastkernels.errors import CheckpointError, UnknownNameError, UsageError
from fastkernels.registry import Kind, architecture_of
from fastkernels.workloads import byte_tokenizer

_GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class ModelSource:
    """A Hugging Face config, and the checkpoint directory it came from; None: random weights by seed."""

    name: str
    hf_config: dict[str, Any]
    checkpoint: Path | None = None


def presets() -> list[str]:
    """Models that need no file: their configurations ship with the engine."""
    folder = files("fastkernels.engine").joinpath("presets")
    return sorted(item.name.removesuffix(".json") for item in folder.iterdir() if item.name.endswith(".json"))


def shipped_checkpoints() -> dict[str, Path]:
    """The small trained models that ship with the project, by name."""
    folder = Path(__file__).parents[1] / "checkpoints"
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}


def find_model(model: str | Path) -> ModelSource:
    """A checkpoint directory, the path of a config.json, or the name of a shipped checkpoint or preset.

    Errors: UnknownNameError when it is none of them; CheckpointError when its config cannot be read.
    """
    path = Path(model)
    if path.is_dir():
        return ModelSource(path.name, checkpoint_config(path), path)
    if path.is_file():
        return ModelSource(path.stem, read_json(path))
    shipped = shipped_checkpoints()
    if str(model) in shipped:
        return ModelSource(str(model), checkpoint_config(shipped[str(model)]), shipped[str(model)])
    if str(model) in presets():
        text = files("fastkernels.engine").joinpath("presets", f"{model}.json").read_text(encoding="utf-8")
        return ModelSource(str(model), json.loads(text))
    raise UnknownNameError("model directory, config file or preset", str(model), [*presets(), *shipped])


def build_config(source: ModelSource) -> Any:
    """The architecture's own configuration; of a mixture of experts it has num_experts. A checkpoint's
    generation_config.json says before config.json which tokens end an answer, as in transformers' generate().

    Errors: CheckpointError when its sizes do not fit together; UnknownNameError for another architecture.
    """
    architecture = architecture_of(source.hf_config)
    module, _, name = architecture.config.partition(":")
    given = source.hf_config
    if architecture.kind is Kind.AUTOREGRESSIVE:
        ends = _generation_ends(source)
        given = {**given, **ends}
        if isinstance(given.get("text_config"), dict):
            given["text_config"] = {**given["text_config"], **ends}
    try:
        return getattr(importlib.import_module(module), name).from_hf(given)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The configuration of {source.name} cannot be used: {error}") from error


def check_experts(model: str | Path, num_ranks: int) -> None:
    """Whether a model's experts can be spread over ranks as wholes.

    Errors: UsageError when it has none, or fewer than there are ranks; those of find_model and build_config.
    """
    source = find_model(model)
    num_experts = getattr(build_config(source), "num_experts", 0)
    if not num_experts:
        raise UsageError(f"enable_expert_parallel is set, and {source.name} has no experts; leave it out.")
    if num_experts < num_ranks:
        raise UsageError(
            f"enable_expert_parallel is set, and {source.name} has {num_experts} experts, too few for each of "
            f"{num_ranks} ranks to hold one; tensor_parallel_size can be at most {num_experts}."
        )


def _generation_ends(source: ModelSource) -> dict[str, Any]:
    """The eos_token_id of a checkpoint's generation_config.json, where it names any."""
    path = source.checkpoint and source.checkpoint / _GENERATION_CONFIG
    if path is None or not path.is_file():
        return {}
    ends = read_json(path).get("eos_token_id")
    if ends is None:
        return {}
    if not all(type(token) is int for token in (ends if isinstance(ends, list) else [ends])):
        raise CheckpointError(f"{path}: eos_token_id is {ends!r}; it must be a token id or a list of them.")
    return {"eos_token_id": ends}


def find_tokenizer(source: ModelSource, folder: str | Path | None = None) -> Tokenizer:
    """The checkpoint's tokenizer.json, else the shipped byte-level one; it neither cuts texts nor pads them.

    folder: whose tokenizer.json is taken instead.
    Errors: CheckpointError when the file cannot be read; UsageError when `folder` has none.
    """
    if folder is not None and not (Path(folder) / "tokenizer.json").is_file():
        raise UsageError(f"tokenizer is {str(folder)!r}; it must be a folder with a tokenizer.json.")
    where = source.checkpoint if folder is None else Path(folder)
    path = where and where / "tokenizer.json"
    if path is None or not path.is_file():
        return byte_tokenizer()
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise CheckpointError(f"{path} is not a tokenizer: {error}.") from error
    tokenizer.no_truncation()  # transformers saves those of its last call, and sets them anew at each
    tokenizer.no_padding()
    return tokenizer
