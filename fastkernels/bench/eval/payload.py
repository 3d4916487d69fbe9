"""Requests and answers as bytes, and memory that one process lends another.

A payload is safetensors: arrays and tensors by number, and the plain rest as JSON beside them. Reading it runs no code
of whoever wrote it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

MOST_BYTES = 8 << 30
"""Of one payload."""

_PLAIN = "plain"
_ARRAY, _TENSOR = "$array", "$tensor"


def pack(value: Any) -> bytes:
    """Plain data, numpy arrays and tensors, nested in dicts and lists."""
    tensors: dict[str, Tensor] = {}

    def plain(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {str(key): plain(inner) for key, inner in part.items()}
        if isinstance(part, list | tuple):
            return [plain(inner) for inner in part]
        if isinstance(part, np.generic):
            return part.item()
        if not isinstance(part, np.ndarray | Tensor):
            return part
        number = str(len(tensors))
        if isinstance(part, np.ndarray):
            tensors[number] = torch.from_numpy(np.array(part, order="C"))
            return {_ARRAY: number}
        tensors[number] = part.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: number}

    text = json.dumps(plain(value)).encode()
    return save({**tensors, _PLAIN: torch.frombuffer(bytearray(text), dtype=torch.uint8)})


def unpack(data: bytes) -> Any:
    """What `pack` was given; tuples come back as lists. Errors: ValueError when it is no payload."""
    try:
        tensors = load(data)
        value = json.loads(tensors.pop(_PLAIN).numpy().tobytes())
        return _filled(value, tensors)
    except (SafetensorError, KeyError, AttributeError, TypeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"This is no payload: {type(error).__name__}: {error}") from error


def _filled(part: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(part, list):
        return [_filled(inner, tensors) for inner in part]
    if not isinstance(part, dict):
        return part
    if part.keys() == {_TENSOR}:
        return tensors[part[_TENSOR]]
    if part.keys() == {_ARRAY}:
        return tensors[part[_ARRAY]].numpy()
    return {key: _filled(inner, tensors) for key, inner in part.items()}


def lend(data: bytes) -> int:
    """A descriptor of memory that holds the data; the caller closes it."""
    descriptor = os.memfd_create("payload")
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    return descriptor


def borrow(descriptor: int) -> bytes:
    """What a lent descriptor holds; it is closed. Errors: ValueError when it is no memory or holds too much."""
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise ValueError(f"A payload is lent memory of at most {MOST_BYTES} bytes; this has {status.st_size}.")
        parts, offset = [], 0
        while offset < status.st_size:
            part = os.pread(descriptor, min(status.st_size - offset, 1 << 30), offset)
            if not part:
                raise ValueError(f"A payload of {status.st_size} bytes ended after {offset}.")
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        os.close(descriptor)
