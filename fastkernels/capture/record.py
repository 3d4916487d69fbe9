"""Recording the calls of ops while a model runs, as cases. The model's results do not change."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastkernels.cache import cached_layers
from fastkernels.capture.case import Case, encode_value
from fastkernels.capture.replay import as_outputs, build_op, call_op, case_inputs
from fastkernels.capture.snapshot import Budget, activation_dtype, content_key, take
from fastkernels.context import Phase, forward_context_or_none
from fastkernels.errors import UnsupportedError, UsageError
from fastkernels.op import Op
from fastkernels.registry import snake_case
from fastkernels.spec import OpSpec, Role

MEGABYTE = 1 << 20
_NAMES = frozenset({"prefix"})
"""Constructor arguments that say where a layer stands, not what it computes."""


@dataclass
class _Kept:
    """What is known of one key: its calls, who made them, and the first few cases."""

    cases: list[Case] = field(default_factory=list)
    contents: set[str] = field(default_factory=set)
    callers: Counter[str] = field(default_factory=Counter)


def _plain_new(cls: type, *args: Any, **kwargs: Any) -> Any:
    return object.__new__(cls)


class Recorder:
    """A context manager: inside, calls of the chosen ops that were built inside become cases.

    ops: names or classes; None: all. keep: cases of different values per (op, shapes, dtypes, init, phase).
    budget_bytes: float values and bytes of quantised weights kept; what does not fit is kept as moments, and its case
        is not comparable bit for bit.
    phase: of calls outside of a forward context. calls: how many were seen, by op and phase.
    """

    _active: Recorder | None = None

    def __init__(
        self,
        ops: Iterable[str | type] | None = None,
        keep: int = 1,
        budget_bytes: int = 256 * MEGABYTE,
        phase: Phase | None = None,
    ) -> None:
        if keep < 1 or budget_bytes < 0:
            raise UsageError(f"keep is {keep} (least 1), budget_bytes is {budget_bytes} (least 0).")
        self.names = None if ops is None else {op if isinstance(op, str) else snake_case(op.__name__) for op in ops}
        self.keep, self.phase = keep, phase
        self.calls: Counter[tuple[str, Phase | None]] = Counter()
        self._budget = Budget(budget_bytes)
        self._kept: dict[str, _Kept] = {}
        self._init: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = WeakKeyDictionary()
        self._paths: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()

    def __enter__(self) -> Self:
        if Recorder._active is not None:
            raise UsageError("A recording is already running; recordings do not nest.")
        Recorder._active = self

        def recording_new(cls: type, *args: Any, **kwargs: Any) -> Any:
            op: Any = object.__new__(cls)
            self._init[op] = (args, kwargs)
            self._budget.forget_places()
            return op

        def recording_call(op: Op, *args: Any, **kwargs: Any) -> Any:
            return self._call(op, args, kwargs)

        Op.__new__ = recording_new  # type: ignore[method-assign, assignment]
        Op.__call__ = recording_call  # type: ignore[method-assign]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        Recorder._active = None
        # Deleting __new__ would leave classes that take no arguments: https://github.com/python/cpython/issues/49572
        Op.__new__ = _plain_new  # type: ignore[method-assign, assignment]
        del Op.__call__

    @property
    def cases(self) -> list[Case]:
        """One or a few per key, in the order of first calls, with counts and callers."""
        found = []
        for kept in self._kept.values():
            callers = tuple(path for path, _ in kept.callers.most_common())
            count = kept.callers.total()
            found += [replace(case, count=count, callers=callers) for case in kept.cases]
        return found

    def _call(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = snake_case(type(op).__name__)
        if self.names is not None and name not in self.names:
            return nn.Module.__call__(op, *args, **kwargs)
        inputs = _arguments(type(op), "forward", op, args, kwargs)
        context = forward_context_or_none()
        phase = context.phase if context is not None else self.phase
        self.calls[name, phase] += 1
        init = self._init_of(op)
        kept = self._kept.setdefault(_key(name, init, op, inputs, phase), _Kept())
        kept.callers[self._path_of(op)] += 1
        if len(kept.cases) >= self.keep:
            return nn.Module.__call__(op, *args, **kwargs)
        reads_context = op.spec.reads_context or bool(cached_layers(op))
        _check_inputs(name, inputs)
        snapshot = take(name, init, op, inputs, context if reads_context else None, self._budget)
        snapshot.case = replace(snapshot.case, phase=phase)
        result = nn.Module.__call__(op, *args, **kwargs)
        content = content_key(snapshot.case)
        if content not in kept.contents:
            kept.contents.add(content)
            kept.cases.append(snapshot.finish(op, op.spec, inputs, as_outputs(result)))
        return result

    def _init_of(self, op: Op) -> dict[str, Any]:
        """Errors: UnsupportedError when the op was built before the recording began."""
        if op not in self._init:
            raise UnsupportedError(
                f"A {type(op).__name__} is called that was built before the recording began, so its constructor "
                f"arguments are unknown. Build the model inside the recording."
            )
        args, kwargs = self._init[op]
        return _arguments(type(op), "__init__", op, args, kwargs)

    def _path_of(self, op: Op) -> str:
        """Its path in the outermost op that holds it; a class name when nothing holds it."""
        if op not in self._paths:
            built = list(self._init)
            inner = {child for module in built for child in module.modules() if child is not module}
            for root in (module for module in built if module not in inner):
                for path, child in root.named_modules():
                    self._paths[child] = path or type(root).__name__
        return self._paths.get(op, type(op).__name__)


@cache
def _signature(cls: type, method: str) -> inspect.Signature:
    return inspect.signature(getattr(cls, method))


def _arguments(cls: type, method: str, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, defaults included.

    Errors: UnsupportedError when the method takes arguments without names.
    """
    signature = _signature(cls, method)
    bound = signature.bind(op, *args, **kwargs)
    bound.apply_defaults()
    named: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            named[name] = value
        elif value:
            raise UnsupportedError(f"{cls.__name__}.{method} takes *{name}; an op names its arguments.")
    return named


def _check_inputs(name: str, inputs: Mapping[str, Any]) -> None:
    """Errors: UnsupportedError names the argument that a case cannot hold."""
    for argument, value in inputs.items():
        if value is not None and not isinstance(value, (Tensor, bool, int, float, str)):
            raise UnsupportedError(
                f"{name} is called with {argument} of type {type(value).__name__}; a case holds tensors, numbers, "
                f"strings and None. Give forward plain arguments."
            )


def _key(name: str, init: Mapping[str, Any], op: Op, inputs: Mapping[str, Any], phase: Phase | None) -> str:
    """(op, shapes, dtypes, init, phase). Numbers differ in every step and do not count; nor does the pool's size."""
    parts: dict[str, Any] = {}
    for argument, value in inputs.items():
        if isinstance(value, Tensor):
            parts[argument] = [_key_shape(op.spec, argument, value), str(value.dtype)]
        elif value is None or isinstance(value, (bool, str)):
            parts[argument] = value
    try:
        encoded = encode_value({argument: value for argument, value in init.items() if argument not in _NAMES})
    except TypeError as error:
        raise UnsupportedError(f"{name} cannot be captured: {error}") from error
    dtype = str(activation_dtype(op, op.spec, inputs))
    return json.dumps([name, encoded, dtype, phase, parts], sort_keys=True)


def _key_shape(spec: OpSpec, argument: str, value: Tensor) -> list[int]:
    """A page table widens by one page now and then: its width counts rounded up to a power of two."""
    shape = list(value.shape)
    role = spec.inputs[argument].role if argument in spec.inputs else None
    if role is Role.CACHE:
        return [size for axis, size in zip(spec.inputs[argument].axes, shape, strict=True) if axis != "num_pages"]
    if role is Role.STATE:
        return shape[1:]
    if role is Role.PAGE_TABLE:
        shape[-1] = 1 << max(shape[-1] - 1, 0).bit_length()
    return shape


def recapture(case: Case, device: torch.device | str = "cpu") -> Case:
    """Replay a case while recording it: by-value cases come back identical (their labels are carried over)."""
    with Recorder([case.op], phase=case.phase, budget_bytes=1 << 62) as recorder:
        module = build_op(case, device)
        call_op(module, case, case_inputs(case, device))
    again = next(c for c in recorder.cases if c.op == case.op)
    return replace(again, family=case.family, count=case.count, callers=case.callers)
