"""A model that runs: its class with its weights, on a device."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from fastkernels.distributed.tensor_parallel import tp_size
from fastkernels.dtypes import default_dtype
from fastkernels.engine.model_source import ModelSource
from fastkernels.errors import EnvironmentProblem, UsageError
from fastkernels.registry import architecture_of
from fastkernels.weights import load_weights, random_weights


def build_model(
    source: ModelSource, config: Any, dtype: torch.dtype, device: torch.device, seed: int, is_dummy: bool = False
) -> nn.Module:
    """The architecture's L4 class with the checkpoint's weights; where there is none, and when it is a dummy, with
    random ones that `seed` alone decides."""
    model = build_bare_model(source, config, dtype, device)
    if source.checkpoint is None or is_dummy:
        random_weights(model, seed)
    else:
        load_weights(model, source.checkpoint)
    return model.eval()


def build_bare_model(source: ModelSource, config: Any, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The architecture's L4 class, whose weights are still to come.

    Errors: UsageError when its sizes do not split over the ranks.
    """
    architecture = architecture_of(source.hf_config)
    model_class = getattr(importlib.import_module(architecture.module), architecture.class_name)
    with default_dtype(dtype), torch.device(device):
        try:
            model: nn.Module = model_class(config)
        except ValueError as error:
            if tp_size() == 1:
                raise
            raise UsageError(
                f"tensor_parallel_size is {tp_size()}, which {source.name} cannot have: {error}"
            ) from error
    return model


def find_device(device: str | torch.device | None) -> torch.device:
    """None: the GPU when there is one.

    Errors: UsageError when it is no device; EnvironmentProblem when this machine lacks it.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"{device!r} is not a device; say cpu, cuda or cuda:0.") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise EnvironmentProblem(f"{device} is not there: {torch.cuda.device_count()} GPUs are visible. Use cpu.")
    return found
