"""The ops of sampling, as they are when they are built: the baseline's, or what replaces them."""

from __future__ import annotations

import importlib

from torch import nn

from fastkernels.registry import find_ops


def sampling_op(name: str, *args: object) -> nn.Module:
    entry = find_ops(name)[0]
    return getattr(importlib.import_module(entry.module), entry.class_name)(*args)
