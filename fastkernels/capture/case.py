"""One call of one op as data: what it was built with, what it was given, what it may write to.

Knows no file format (capture/store.py) and no model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastkernels.capture.moments import Moments
from fastkernels.context import ForwardContext, Phase
from fastkernels.errors import CaseFileError


@dataclass(frozen=True)
class Case:
    """Everything that a call needs to happen again.

    op: registered name ("rms_norm"). init: keyword arguments of `__init__`. params: the op's
    state_dict. inputs: forward's arguments by name (tensors, numbers, None). dtype: the activation
    dtype the op was built in. context, caches: what the layers read beside their arguments, pages and
    slots renumbered to those that the call touches; caches in the order of `flat_caches`.
    after: declared mutable buffers once the call is over ("key_cache", "kv_cache.0", ...).
    outputs_digest: sha256 over the recorded outputs and `after`; "" when never run.
    family: "captured", or the input family that drew the values.
    count: calls of this key in the run. callers: module paths in the model, most frequent first.
    moments: tensors that were too large to keep by value ("params.weight"): the case holds values drawn from
    them (capture/tensors.py `filled`), was never run with those, and has no outputs_digest and no `after`.
    """

    op: str
    init: Mapping[str, Any]
    inputs: Mapping[str, Any]
    params: Mapping[str, Tensor] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    context: ForwardContext | None = None
    caches: tuple[Tensor, ...] = ()
    after: Mapping[str, Tensor] = field(default_factory=dict)
    phase: Phase | None = None
    family: str = "captured"
    outputs_digest: str = ""
    count: int = 1
    callers: tuple[str, ...] = ()
    moments: Mapping[str, Moments] = field(default_factory=dict)

    def shapes(self) -> str:
        """Short text of the tensor inputs: "x[5, 64] residual[5, 64]"."""
        return " ".join(f"{n}{list(v.shape)}" for n, v in self.inputs.items() if isinstance(v, Tensor))

    def init_text(self) -> str:
        """Short text of the constructor's arguments: "bias=False config=LlamaConfig#1f0c22ab in_features=64".
        It differs where one of them does, and no argument's part of it holds a space."""
        return " ".join(f"{name}={_short(value)}" for name, value in sorted(self.init.items()))


_LONGEST_VALUE = 24


def _short(value: Any) -> str:
    text = str(value).replace(", ", ",").removeprefix("torch.")
    if len(text) <= _LONGEST_VALUE and " " not in text:
        return text
    return f"{type(value).__name__}#{hashlib.sha256(repr(value).encode()).hexdigest()[:8]}"


def encode_value(value: Any) -> Any:
    """A constructor argument as JSON: numbers, strings, None, dtypes, lists, dicts, config dataclasses.

    Errors: TypeError names what cannot be written down.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    if isinstance(value, (list, tuple)):
        return [encode_value(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): encode_value(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        path = f"{type(value).__module__}:{type(value).__qualname__}"
        values = {f.name: encode_value(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"$config": path, "values": values}
    raise TypeError(f"A constructor argument of type {type(value).__name__} cannot be written to a case.")


def decode_value(value: Any) -> Any:
    """The inverse of `encode_value`; only dataclasses inside fastkernels.tasks.configs are built.

    Errors: CaseFileError when a name is not one of those.
    """
    if isinstance(value, list):
        return [decode_value(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "$dtype" in value:
        dtype = getattr(torch, str(value["$dtype"]), None)
        if not isinstance(dtype, torch.dtype):
            raise CaseFileError(f"{value['$dtype']!r} is not a torch dtype.")
        return dtype
    if "$config" in value:
        module, _, name = str(value["$config"]).partition(":")
        if not module.startswith("fastkernels.tasks.configs."):
            raise CaseFileError(f"A case may only name configurations of fastkernels.tasks.configs, not {module!r}.")
        cls = getattr(importlib.import_module(module), name, None)
        if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
            raise CaseFileError(f"{value['$config']!r} is not a configuration.")
        return cls(**{k: decode_value(v) for k, v in value["values"].items()})
    return {k: decode_value(v) for k, v in value.items()}
