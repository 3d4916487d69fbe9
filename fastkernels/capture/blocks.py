"""Large tensors as blocks that are stored once: a cache before and after a step differs in a few of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastkernels.capture.digest import tensor_bytes
from fastkernels.errors import CaseFileError

BLOCK_BYTES = 2048
"""A power of two, so that the pages of a cache fall on whole blocks."""

_BLOCKS, _INDEX = "blocks", "block_index"
_LEAST = 2 * BLOCK_BYTES
"""Smaller tensors are stored as they are."""

Layout = dict[str, dict[str, Any]]


def pack(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Layout]:
    """What to write, and where each large tensor's blocks stand in it; dense CPU tensors by name."""
    plain: dict[str, Tensor] = {}
    layout: Layout = {}
    places: dict[bytes, int] = {}
    blocks: list[bytes] = []
    index: list[int] = []
    for name, tensor in sorted(tensors.items()):
        data = tensor_bytes(tensor)
        if len(data) < _LEAST:
            plain[name] = tensor
            continue
        layout[name] = {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "at": len(index),
        }
        for start in range(0, len(data), BLOCK_BYTES):
            block = bytes(data[start : start + BLOCK_BYTES])
            place = places.setdefault(hashlib.sha256(block).digest(), len(blocks))
            if place == len(blocks):
                blocks.append(block.ljust(BLOCK_BYTES, b"\0"))
            index.append(place)
    if layout:
        plain[_BLOCKS] = torch.frombuffer(bytearray(b"".join(blocks)), dtype=torch.uint8).view(-1, BLOCK_BYTES)
        plain[_INDEX] = torch.tensor(index, dtype=torch.int32)
    return plain, layout


def unpack(stored: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The inverse of `pack`.

    Errors: CaseFileError when the layout does not fit what is stored.
    """
    tensors = {name: tensor for name, tensor in stored.items() if name not in (_BLOCKS, _INDEX)}
    if not layout:
        return tensors
    if _BLOCKS not in stored or _INDEX not in stored:
        raise CaseFileError(f"The tensors' file lacks {_BLOCKS} or {_INDEX}.")
    blocks, index = stored[_BLOCKS], stored[_INDEX].long()
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(blocks):
        raise CaseFileError(f"{_INDEX} names block {int(index.max())}; there are {len(blocks)}.")
    for name, entry in layout.items():
        dtype, shape = getattr(torch, entry["dtype"]), torch.Size(entry["shape"])
        num_bytes = shape.numel() * dtype.itemsize
        places = index[entry["at"] : entry["at"] + -(-num_bytes // BLOCK_BYTES)]
        data = blocks[places].flatten()[:num_bytes]
        if data.numel() != num_bytes:
            raise CaseFileError(f"Tensor {name} needs {num_bytes} bytes; its blocks hold {data.numel()}.")
        tensors[name] = data.view(dtype).reshape(shape)
    return tensors
