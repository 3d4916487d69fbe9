"""The ops of sampling, as they are when they are built: the baseline's, or what replaces them."""

from __future__ import annotations

import importlib

from torch import nn

from fastkernels.registry import op_of_file_of_its_name


def sampling_op(name: str, *args: object) -> nn.Module:
    entry = op_of_file_of_its_name(name)
    return getattr(importlib.import_module(entry.module), entry.class_name)(*args)
