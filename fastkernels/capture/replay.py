"""Making a captured call happen again: the op from its init and params, its caches and context, its inputs.

A process that judges candidates imports this file: it needs torch and the contracts, nothing else.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.cache import bind_caches, flat_caches
from fastkernels.capture.case import Case
from fastkernels.capture.digest import outputs_digest
from fastkernels.capture.tensors import copy_to, filled
from fastkernels.context import set_forward_context
from fastkernels.dtypes import default_dtype
from fastkernels.errors import CaseFileError, UnknownNameError
from fastkernels.op import prepare_weights
from fastkernels.registry import ops
from fastkernels.spec import OpSpec


@dataclass(frozen=True)
class Replay:
    """What came out: the outputs in order, the mutated buffers by name, and the digest over both."""

    outputs: tuple[Any, ...]
    after: Mapping[str, Tensor]

    @property
    def digest(self) -> str:
        return outputs_digest(self.outputs, self.after)


def op_class_of(name: str) -> type[nn.Module]:
    """The class that now stands for an op: the baseline's, or its replacement where an overlay is installed.

    Errors: UnknownNameError suggests the nearest.
    """
    if name not in ops():
        raise UnknownNameError("op", name, ops())
    entry = ops()[name]
    return getattr(importlib.import_module(entry.module), entry.class_name)


def build_op(case: Case, device: torch.device | str = "cpu", op_class: type[nn.Module] | None = None) -> nn.Module:
    """The op of a case on `device`, its parameters loaded and its caches bound (copies: the case stays as it is).

    op_class: another class with the same contract. Errors: CaseFileError when the parameters are not the op's.
    """
    case = filled(case)
    cls = op_class or op_class_of(case.op)
    with default_dtype(case.dtype), torch.device(device):
        op = cls(**copy.deepcopy(dict(case.init)))
    load_params(op, case.op, case.params)
    op = op.to(device).eval()
    prepare_weights(op)
    reset_caches(op, case, device)
    return op


def load_params(op: nn.Module, name: str, params: Mapping[str, Tensor]) -> None:
    """Every parameter exactly once, in the dtype it was recorded in.

    Errors: CaseFileError names those that are missing, left over or of another shape.
    """
    own = op.state_dict(keep_vars=True)
    problems = [f"missing {n}" for n in own.keys() - params.keys()] + [
        f"unknown {n}" for n in params.keys() - own.keys()
    ]
    for key in own.keys() & params.keys():
        if own[key].shape != params[key].shape:
            problems.append(f"{key} is {list(params[key].shape)}, the op's {list(own[key].shape)}")
    if problems:
        raise CaseFileError(f"The parameters of a case of {name} do not fit {type(op).__name__}: {sorted(problems)}.")
    for key, value in own.items():
        if value.dtype != params[key].dtype:
            value.data = value.data.to(params[key].dtype)
    op.load_state_dict(dict(params), strict=True)


def reset_caches(op: nn.Module, case: Case, device: torch.device | str) -> None:
    """Bind fresh copies of the case's caches: as they were before the call."""
    if case.caches:
        bind_caches(op, [copy_to(cache, device) for cache in filled(case).caches])


def case_inputs(case: Case, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Fresh copies of the inputs on `device`, strides kept."""
    values = filled(case).inputs
    return {name: copy_to(v, device) if isinstance(v, Tensor) else copy.copy(v) for name, v in values.items()}


def device_of(module: nn.Module, inputs: Mapping[str, Any]) -> torch.device:
    """Where a call happens: its first tensor input, else the first parameter, cache or buffer, else the CPU."""
    tensors = [v for v in inputs.values() if isinstance(v, Tensor)]
    caches = [cache for _, cache in flat_caches(module)]
    tensors = tensors or [*module.parameters(), *caches, *module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def call_op(module: nn.Module, case: Case, inputs: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
    """One call in the case's context; the outputs in order, as the module returned them (None included).

    inputs: already on the device, and written to where the spec says so; None: fresh copies of the case's, on the
        device of the module's parameters or caches (the CPU when it has none: then give `case_inputs(case, device)`).
    """
    if inputs is None:
        inputs = case_inputs(case, device_of(module, {}))
    context = case.context and case.context.to(device_of(module, inputs))
    with torch.inference_mode(), set_forward_context(context):
        return as_outputs(module(**inputs))


def as_outputs(result: Any) -> tuple[Any, ...]:
    if result is None:
        return ()
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def mutated_buffers(module: nn.Module, spec: OpSpec, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The buffers that the spec lets the call write to, by the names of `Case.after`; not copied."""
    named: dict[str, Tensor] = {}
    for name in spec.mutates:
        if isinstance(inputs.get(name), Tensor):
            named[name] = inputs[name]
        elif name == "kv_cache":
            named |= {f"kv_cache.{i}": cache for i, (_, cache) in enumerate(flat_caches(module))}
    return named


def replay(case: Case, device: torch.device | str = "cpu", op_class: type[nn.Module] | None = None) -> Replay:
    """Build the op, call it once and return what came out; the case is left as it was."""
    module = build_op(case, device, op_class)
    inputs = case_inputs(case, device)
    outputs = call_op(module, case, inputs)
    contract: Any = module if hasattr(module, "spec") else op_class_of(case.op)  # a plain module has none
    return Replay(outputs, mutated_buffers(module, contract.spec, inputs))
