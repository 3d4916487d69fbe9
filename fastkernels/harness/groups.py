"""What an op is judged on: ways to build it, each with captured cases and hidden shapes of drawn ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastkernels.capture.case import Case
from fastkernels.capture.replay import default_dtype
from fastkernels.capture.tensors import filled
from fastkernels.context import set_forward_context
from fastkernels.harness.expect import baseline_class, build_reference, expectation
from fastkernels.harness.hidden_shapes import hidden_shapes
from fastkernels.harness.inputs import draw_case, draw_params
from fastkernels.op import Op
from fastkernels.registry import OpEntry
from fastkernels.spec import Cost


@dataclass
class Group:
    """Cases that share a construction. op: the baseline's on the CPU; exact: the same in float64, on the
    oracle's device; pools: cases of one shape each."""

    entry: OpEntry
    init: Mapping[str, Any]
    dtype: torch.dtype
    params: dict[str, Tensor]
    op: Op
    exact: Op
    oracle_device: torch.device
    pools: list[list[Case]] = field(default_factory=list)

    def use_params(self, params: dict[str, Tensor]) -> None:
        self.params = params
        self.exact = build_reference(self.entry, self.init, params, torch.float64, self.oracle_device)


def make_groups(
    entry: OpEntry,
    cases: Sequence[Case],
    dtypes: Sequence[torch.dtype],
    num_shapes: int,
    oracle_device: torch.device,
    generator: torch.Generator,
    num_captured: int = 1000,
) -> list[Group]:
    """Captured constructions first, then the contract's examples in each of `dtypes` it accepts."""
    groups: dict[str, Group] = {}
    for case in map(filled, choose_cases(cases, num_captured)):
        key = f"{sorted(case.init.items(), key=str)} {case.dtype}"
        if key not in groups:
            params = {name: value.detach().clone() for name, value in case.params.items()}
            groups[key] = _group(entry, case.init, case.dtype, params, oracle_device)
        groups[key].pools.append([case])
    for dtype in drawn_dtypes(entry, dtypes):
        for number, init in enumerate(baseline_class(entry).spec.examples):
            params = draw_params(_shell(entry, init, dtype), generator)
            groups[f"example {number} {dtype}"] = _group(entry, init, dtype, params, oracle_device)
    for group in groups.values():
        for shape in hidden_shapes(group.op, generator, num_shapes):
            drawn = (group.op, group.init, group.dtype, shape)
            group.pools.append([draw_case(*drawn, family, group.params, generator) for family in shape.families])
    return list(groups.values())


def drawn_dtypes(entry: OpEntry, dtypes: Sequence[torch.dtype], *, takes_others: bool = False) -> list[torch.dtype]:
    """Those of `dtypes` that the op takes; takes_others: where it takes none, the first that it does take."""
    accepted = baseline_class(entry).spec.dtypes
    found = [dtype for dtype in dtypes if _name(dtype) in accepted]
    return found or ([getattr(torch, accepted[0])] if takes_others else [])


def none_to_draw(entry: OpEntry, dtypes: Sequence[torch.dtype]) -> str:
    """Why no inputs of these dtypes are drawn, and what to ask for."""
    accepted = baseline_class(entry).spec.dtypes
    takes = " and ".join(accepted) + (" alone" if len(accepted) == 1 else "")
    return f"it takes {takes}, not {' or '.join(map(_name, dtypes))}: give --dtype {accepted[0]}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def choose_cases(cases: Sequence[Case], limit: int) -> list[Case]:
    """At most `limit` of them, one a phase in turn: the largest first, then the smallest, then the next largest."""
    by_phase: dict[str, list[Case]] = {}
    for case in sorted(cases, key=case_bytes):
        by_phase.setdefault(str(case.phase), []).append(case)
    chosen: list[Case] = []
    takes_largest = True
    while len(chosen) < min(limit, len(cases)):
        for queue in by_phase.values():
            if queue and len(chosen) < limit:
                chosen.append(queue.pop(-1 if takes_largest else 0))
        takes_largest = not takes_largest
    return chosen


def _group(
    entry: OpEntry, init: Mapping[str, Any], dtype: torch.dtype, params: dict[str, Tensor], oracle_device: torch.device
) -> Group:
    op = build_reference(entry, init, params, dtype, torch.device("cpu"))
    exact = build_reference(entry, init, params, torch.float64, oracle_device)
    return Group(entry, init, dtype, params, op, exact, oracle_device)


def _shell(entry: OpEntry, init: Mapping[str, Any], dtype: torch.dtype) -> Op:
    with default_dtype(dtype):
        return baseline_class(entry)(**init)


def answer_bytes(group: Group, case: Case) -> int:
    expected = expectation(group.exact, case, group.oracle_device)
    return sum(e.value.numel() * e.dtype.itemsize + 512 for e in expected.outputs if e is not None)


def case_bytes(case: Case) -> int:
    tensors = [v for v in case.inputs.values() if isinstance(v, Tensor)]
    return sum(t.numel() * t.element_size() for t in (*tensors, *case.caches))


def case_cost(group: Group, case: Case) -> Cost:
    """The op's own count of bytes and flops for this call."""
    expected = expectation(group.exact, case, group.oracle_device)
    outputs = {
        e.name: torch.empty(e.value.shape, dtype=e.dtype, device="meta") for e in expected.outputs if e is not None
    }
    with set_forward_context(case.context):
        return group.op.cost(dict(case.inputs), outputs)
