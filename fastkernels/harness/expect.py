"""The definition's answer to a case, in float64 on the same quantised inputs. Runs in the judge alone."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastkernels.cache import bind_caches, cached_layers
from fastkernels.capture.case import Case
from fastkernels.capture.replay import as_outputs, default_dtype
from fastkernels.context import set_forward_context
from fastkernels.harness.compare import Expected
from fastkernels.op import Op
from fastkernels.registry import OpEntry
from fastkernels.spec import Compare, Role, TensorSpec

_KEEP_DTYPE = frozenset({Role.TEMPERATURE, Role.TOP_P})


@dataclass(frozen=True)
class Expectation:
    """What a call must return and leave behind.

    outputs: in order, None where the contract returns None. mutated: by flat name ("in:key_cache",
    "cache:0"). is_sequence: whether the answer is a tuple.
    """

    outputs: tuple[Expected | None, ...]
    mutated: Mapping[str, Expected]
    is_sequence: bool


def baseline_class(entry: OpEntry) -> type[Op]:
    return getattr(importlib.import_module(entry.module), entry.class_name)


def build_reference(
    entry: OpEntry, init: Mapping[str, Any], params: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> Op:
    """The baseline's op in `dtype` with the same parameters; float64 for definitions."""
    with default_dtype(dtype), device:
        op = baseline_class(entry)(**init)
    op.to(dtype)
    op.load_state_dict(dict(params), strict=True)  # copies convert on the device
    return op.to(device).eval()


def expectation(op: Op, case: Case, device: torch.device) -> Expectation:
    """The answer of `op` (built in float64) to `case`; the case is left as it was."""
    spec = op.spec
    inputs = {n: _raise(v, spec.inputs.get(n), device) if isinstance(v, Tensor) else v for n, v in case.inputs.items()}
    caches = [cache.to(device, torch.float64, copy=True) for cache in case.caches]
    if caches:
        bind_caches(op, caches)
    context = case.context.to(device) if case.context else None
    with torch.no_grad(), set_forward_context(context):
        result = op.reference(**inputs)
    outputs = [value.detach() if isinstance(value, Tensor) else value for value in as_outputs(result)]
    expected = tuple(
        _expected(name, spec.outputs[name], value, case, inputs)
        for name, value in zip(spec.outputs, outputs, strict=False)
    )
    mutated = {}
    for name in spec.mutates:
        if name == "kv_cache":
            for index, layer in enumerate(cached_layers(op)):
                flat = f"cache:{index}"
                mutated[flat] = Expected(flat, layer.kv_cache, case.caches[index].dtype, Compare.VALUES)
        elif isinstance(inputs.get(name), Tensor):
            given = case.inputs[name]
            mutated[f"in:{name}"] = Expected(name, inputs[name], given.dtype, spec.inputs[name].compare)
    return Expectation(expected, mutated, isinstance(result, (tuple, list)))


def _expected(
    name: str, spec: TensorSpec, value: Tensor | None, case: Case, inputs: Mapping[str, Any]
) -> Expected | None:
    if value is None:
        return None
    dtype = case.dtype if spec.dtype == "op" else getattr(torch, spec.dtype)
    of = inputs[spec.of] if spec.of else None
    return Expected(name, value, dtype, spec.compare, of)


def _raise(value: Tensor, spec: TensorSpec | None, device: torch.device) -> Tensor:
    """A copy in float64 where floats carry the op's dtype."""
    keeps = spec is not None and spec.role in _KEEP_DTYPE
    if value.is_floating_point() and not keeps:
        return value.to(device, torch.float64, copy=True)
    return value.to(device, copy=True)


def lowered(case: Case, dtype: torch.dtype) -> Case:
    """The same call on floats rounded to `dtype` and back: what one precision lower would compute on."""

    def lower(x: Tensor) -> Tensor:
        limit = float(torch.finfo(dtype).max)
        return x.float().clamp(-limit, limit).to(dtype).to(x.dtype) if x.is_floating_point() else x

    inputs = {n: lower(v) if isinstance(v, Tensor) else v for n, v in case.inputs.items()}
    params = {n: lower(v) for n, v in case.params.items()}
    return Case(
        op=case.op,
        init=case.init,
        inputs=inputs,
        params=params,
        dtype=case.dtype,
        context=case.context,
        caches=tuple(lower(c) for c in case.caches),
        phase=case.phase,
        family=case.family,
    )
