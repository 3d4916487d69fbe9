"""One op at one size: its production path beside others, taking turns, with its share of the roofline."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from kernel_timing import num_sets
from torch import Tensor

from fastkernels.context import ForwardContext, set_forward_context
from fastkernels.engine.model_source import build_config, find_model
from fastkernels.env import triton_interpreted
from fastkernels.errors import FastKernelsError
from fastkernels.harness.ceilings import Ceilings
from fastkernels.kernels.ahead import TensorsOnGpu
from fastkernels.loading import load_class
from fastkernels.op import Op
from fastkernels.registry import ops
from fastkernels.sets import resolve_set
from op_groups.turns import take_turns

OURS, DEFINITION = "ours", "definition"
SETS = ("torch_native", "fla", "gsplat", "causal_conv1d", "mamba_ssm")
"""Implementation sets that are taken along where they have the op and their library is installed."""

Call = Callable[..., object]
Arguments = tuple[Any, ...]


@dataclass
class Row:
    """An op at one size. By path: microseconds of a call, share of the roofline, and by how much its answer differs
    from ours (root mean square of the difference over that of ours; of integers the share that differ).

    bound: "bytes" or "flops", whichever the device needs longer for. without_graph: paths whose times hold what the
    host takes to launch them. lacking: paths without a time, and why.
    """

    op: str
    model: str
    shape: str
    dtype: str
    num_bytes: int = 0
    num_flops: int = 0
    bound: str = ""
    microseconds: dict[str, float] = field(default_factory=dict)
    roofline_share: dict[str, float] = field(default_factory=dict)
    differs: dict[str, float] = field(default_factory=dict)
    without_graph: list[str] = field(default_factory=list)
    lacking: dict[str, str] = field(default_factory=dict)

    def note(self, path: str, error: Exception) -> None:
        text = (str(error).splitlines() or [""])[0]
        self.lacking[path] = text if isinstance(error, FastKernelsError) else f"{type(error).__name__}: {text}"[:300]


class Bench:
    """Where rows are measured. On a CPU, a rehearsal: sizes are tiny, dtypes float32, and times mean nothing; kernels
    run there when TRITON_INTERPRET=1 is set, else definitions stand in for them."""

    def __init__(self, device: str, ceilings: Ceilings | None) -> None:
        self.device, self.ceilings = torch.device(device), ceilings
        self.is_rehearsal = self.device.type == "cpu"

    @property
    def has_kernels(self) -> bool:
        return not self.is_rehearsal or triton_interpreted()

    def launching(self) -> contextlib.AbstractContextManager[object]:
        """Inside, ops launch their kernels, if interpreted."""
        return TensorsOnGpu() if self.is_rehearsal and triton_interpreted() else nullcontext()

    def config(self, published: str, tiny: str) -> Any:
        """The configuration of a preset."""
        return build_config(find_model(tiny if self.is_rehearsal else published))

    def size(self, published: int, tiny: int) -> int:
        return tiny if self.is_rehearsal else published

    def dtype(self, published: torch.dtype) -> torch.dtype:
        return torch.float32 if self.is_rehearsal else published

    def randn(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype(dtype))

    def ints(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def build(self, op_class: type[Op], init: Mapping[str, Any], dtype: torch.dtype) -> Op:
        with self.device:
            return op_class(**init).to(self.dtype(dtype))

    def row(
        self,
        model: str,
        shape: str,
        op: Op,
        make: Callable[[], Arguments],
        others: Mapping[str, Call] | None = None,
        *,
        init: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.bfloat16,
        has_definition: bool = True,
        context: ForwardContext | None = None,
    ) -> Row:
        """make: arguments anew. others: more paths, called with the same arguments. init: with which sets build the op
        too; None: no set is asked."""
        row = Row(type(op).__name__, model, shape, str(self.dtype(dtype)).removeprefix("torch."))
        try:
            with set_forward_context(context):
                self._measure(row, op, make, self._paths(row, op, others or {}, init, has_definition))
        except Exception as error:  # the rows behind it are measured all the same
            row.note(OURS, error)
        if not self.is_rehearsal:
            torch.cuda.empty_cache()
        return row

    def _paths(
        self, row: Row, op: Op, others: Mapping[str, Call], init: Mapping[str, Any] | None, has_definition: bool
    ) -> dict[str, Call]:
        paths: dict[str, Call] = {OURS: partial(self._launch, op)}
        for name in SETS if init is not None else ():
            if built := self._of_set(row, name, op, init or {}):
                paths[name] = built
        return {**paths, **others, **({DEFINITION: op.reference} if has_definition else {})}

    def _launch(self, op: Op, *arguments: Any) -> object:
        with self.launching():
            return op(*arguments)

    def _of_set(self, row: Row, name: str, op: Op, init: Mapping[str, Any]) -> Op | None:
        """The set's op with the same weights; None where it has none or cannot be built, which the row says."""
        entries = [e for e in resolve_set(name).ops() if e.class_name == type(op).__name__]
        if not entries:
            return None
        try:
            with self.device:
                built: Op = load_class(ops()[entries[0].name], resolve_set(name))(**init)
            built.load_state_dict(op.state_dict(), assign=True)
        except Exception as error:
            row.note(name, error)
            return None
        return built

    def _measure(self, row: Row, op: Op, make: Callable[[], Arguments], paths: dict[str, Call]) -> None:
        first = make()
        returned, ours = _answer(op, paths[OURS], first)
        given = dict(zip(op.spec.inputs, first, strict=False))
        cost = op.cost(given, {n: y for n, y in zip(op.spec.outputs, returned, strict=False) if y is not None})
        row.num_bytes, row.num_flops = cost.num_bytes, cost.num_flops
        for name in list(paths):
            try:
                if name != OURS:
                    row.differs[name] = difference(ours, _answer(op, paths[name], first)[1])
            except Exception as error:
                row.note(name, error)
                del paths[name]
        del ours, returned
        num = 1 if self.is_rehearsal else num_sets(cost.num_bytes)
        sets = [first, *(make() for _ in range(num - 1))]
        calls = {name: [partial(path, *one) for one in sets] for name, path in paths.items()}
        row.microseconds, row.without_graph = _rehearsed(calls) if self.is_rehearsal else take_turns(calls, row.note)
        self._place(row)

    def _place(self, row: Row) -> None:
        """Shares of the roofline."""
        if self.ceilings is None:
            return
        dtype = getattr(torch, row.dtype)
        ideal = self.ceilings.ideal_us(row.num_bytes, row.num_flops, dtype)
        row.bound = "bytes" if ideal == self.ceilings.ideal_us(row.num_bytes, 0, dtype) else "flops"
        row.roofline_share = {name: ideal / us for name, us in row.microseconds.items()}


def _rehearsed(calls: Mapping[str, Sequence[Callable[[], object]]]) -> tuple[dict[str, float], list[str]]:
    found = {}
    for name, own in calls.items():
        started = time.perf_counter()
        for call in own:
            call()
        found[name] = (time.perf_counter() - started) * 1e6 / len(own)
    return found, list(found)


def _with_copies(op: Op, arguments: Arguments) -> Arguments:
    """What the op writes to is copied, so that each path finds it as it was."""
    names = list(op.spec.inputs)[: len(arguments)]
    return tuple(x.clone() if name in op.spec.mutates else x for name, x in zip(names, arguments, strict=True))


def _answer(op: Op, call: Call, arguments: Arguments) -> tuple[tuple[Any, ...], list[Tensor]]:
    """What it returns; and the tensors of that with those that it writes to."""
    given = _with_copies(op, arguments)
    returned = call(*given)
    outputs = returned if isinstance(returned, tuple) else (returned,)
    written = [x for x, before in zip(given, arguments, strict=True) if x is not before]
    return outputs, [x for x in (*outputs, *written) if isinstance(x, Tensor)]


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest over the outputs."""
    found = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.is_floating_point():
            a, b = a.float(), b.float()
            found = max(found, float((a - b).square().mean().sqrt() / a.square().mean().sqrt().clamp_min(1e-30)))
        else:
            found = max(found, float((a != b).float().mean()))
    return found
