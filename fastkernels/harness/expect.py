"""The definition's answer to a case, in float64 on the same quantised inputs. Runs in the judge alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastkernels.cache import bind_caches, flat_caches
from fastkernels.capture.case import Case
from fastkernels.capture.replay import as_outputs, default_dtype
from fastkernels.context import set_forward_context
from fastkernels.harness.compare import Expected, RowNoise, row_change
from fastkernels.harness.tolerance import unit_roundoff
from fastkernels.op import Op
from fastkernels.registry import OpEntry
from fastkernels.spec import Compare, Role, TensorSpec

_KEEP_DTYPE = frozenset({Role.TEMPERATURE, Role.TOP_P})

NUM_NOISE_DRAWS = 16
_NOISE_SEED = 20261120
"""Nothing hangs on this being secret: a candidate's answer is fixed before."""


@dataclass(frozen=True)
class Expectation:
    """What a call must return and leave behind.

    outputs: in order, None where the contract returns None. mutated: by flat name ("in:key_cache",
    "cache:0"). is_sequence: whether the answer is a tuple. measure_noise: finds `noise` when it is first asked for.
    """

    outputs: tuple[Expected | None, ...]
    mutated: Mapping[str, Expected]
    is_sequence: bool
    measure_noise: Callable[[], Mapping[str, RowNoise]] = field(default=dict, repr=False)

    @property
    def compared(self) -> list[Expected]:
        """Everything that is held against an answer."""
        return [e for e in (*self.outputs, *self.mutated.values()) if e is not None]

    @cached_property
    def noise(self) -> Mapping[str, RowNoise]:
        """By name: how far the definition itself moves when all that it reads moves by one roundoff."""
        return self.measure_noise()


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
    answer = _answer(op, case, device, lambda x: x)
    return replace(answer, measure_noise=lambda: _noise(op, case, device, answer))


def _answer(op: Op, case: Case, device: torch.device, alter: Callable[[Tensor], Tensor]) -> Expectation:
    """alter: applied to every float input and cache, in float64."""
    spec = op.spec
    inputs = {
        n: _raise(v, spec.inputs.get(n), device, alter) if isinstance(v, Tensor) else v for n, v in case.inputs.items()
    }
    caches = [alter(cache.to(device, torch.float64, copy=True)) for cache in case.caches]
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
            for index, (_, cache) in enumerate(flat_caches(op)):
                flat = f"cache:{index}"
                mutated[flat] = Expected(flat, cache, case.caches[index].dtype, Compare.VALUES)
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


def _raise(value: Tensor, spec: TensorSpec | None, device: torch.device, alter: Callable[[Tensor], Tensor]) -> Tensor:
    """A copy in float64 where floats carry the op's dtype."""
    keeps = spec is not None and spec.role in _KEEP_DTYPE
    if value.is_floating_point() and not keeps:
        return alter(value.to(device, torch.float64, copy=True))
    return value.to(device, copy=True)


def _noise(op: Op, case: Case, device: torch.device, answer: Expectation) -> dict[str, RowNoise]:
    """The largest change of each row over a few draws of one unit roundoff of the case's dtype, up or down, on every
    float input, cached value and parameter, and on what one part of the op hands to the next. Every other draw gives
    the elements of a row one sign: independent ones average out in a long sum, the rounding of the sum does not."""
    roundoff = unit_roundoff(case.dtype)
    generator = torch.Generator(device).manual_seed(_NOISE_SEED)

    is_by_row = False

    def alter(x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], 1) if is_by_row and x.ndim else x.shape
        factor = torch.randint(0, 2, shape, generator=generator, device=device, dtype=torch.float64)
        return factor.mul_(2 * roundoff).add_(1 - roundoff).mul(x)  # exact: a roundoff is a power of two

    judged = [e for e in answer.compared if e.compare is Compare.VALUES and e.value.is_floating_point()]
    noise: dict[str, RowNoise] = {}
    kept = [p.detach().clone() for p in op.parameters()]
    parts = [part for part in op.modules() if isinstance(part, Op) and part is not op]
    hooks = [part.register_forward_hook(lambda _, __, result: _altered(result, alter)) for part in parts]
    try:
        for draw in range(NUM_NOISE_DRAWS):
            is_by_row = draw % 2 == 1
            for parameter, value in zip(op.parameters(), kept, strict=True):
                parameter.data.copy_(alter(value.to(device)) if value.is_floating_point() else value)
            moved = {e.name: e.value for e in _answer(op, case, device, alter).compared}
            for e in judged:
                change = row_change(e.value, moved[e.name], e.dtype)
                noise[e.name] = change.worst(noise[e.name]) if e.name in noise else change
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, value in zip(op.parameters(), kept, strict=True):
            parameter.data.copy_(value)
    return {name: change.where_ill(roundoff) for name, change in noise.items()}


def _altered(result: Any, alter: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(result, (tuple, list)):
        return type(result)(_altered(item, alter) for item in result)
    return alter(result) if isinstance(result, Tensor) and result.is_floating_point() else result


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
