"""SHA-256 of tensors and of cases: what "bit for bit" means here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastkernels.capture.case import Case, encode_value
from fastkernels.capture.tensors import kept_stride, named_tensors


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The values in row-major order as bytes, without a copy where they already lie so on the CPU."""
    dense = tensor.detach().cpu().contiguous()
    return memoryview(dense.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def tensor_digest(tensor: Tensor) -> str:
    """Over dtype, shape and values; strides and device do not count."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def outputs_digest(outputs: Sequence[Any], after: Mapping[str, Tensor]) -> str:
    """Over the outputs in order and the mutated buffers by name."""
    parts = [tensor_digest(out) if isinstance(out, Tensor) else repr(out) for out in outputs]
    parts += [f"{name}={tensor_digest(after[name])}" for name in sorted(after)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def case_digest(case: Case) -> str:
    """Over everything that decides what the call computes, and what it computed.

    Labels (family, count, callers) do not count; strides do.
    """
    tensors = {}
    for name, tensor in named_tensors(case).items():
        content = tensor_digest(tensor) if tensor.device.type != "meta" else repr(case.moments[name])
        tensors[name] = [content, kept_stride(tensor)]
    context = case.context
    numbers = None
    if context is not None:
        numbers = [context.max_query_len, context.max_seq_len, context.phase, context.num_decodes]
    scalars = {name: repr(value) for name, value in case.inputs.items() if not isinstance(value, Tensor)}
    text = json.dumps(
        [case.op, encode_value(case.init), str(case.dtype), case.phase, numbers, scalars, tensors, case.outputs_digest],
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()
