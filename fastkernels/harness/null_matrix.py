"""The null battery held against an op's own tolerance: which wrong answers are rejected, which would pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastkernels.harness.checks import check_value
from fastkernels.harness.compare import Expected
from fastkernels.harness.expect import Expectation, expectation, lowered
from fastkernels.harness.geometry import draw_geometry
from fastkernels.harness.groups import Group
from fastkernels.harness.hidden_shapes import Shape, free_axes, phases_of
from fastkernels.harness.inputs import draw_case
from fastkernels.harness.nulls import LOWER_PRECISION, NULLS, NullInput
from fastkernels.harness.pool import flatten
from fastkernels.harness.records import NullRecord
from fastkernels.harness.sampling import check_samples
from fastkernels.harness.tolerance import tolerances_for
from fastkernels.harness.verdict import Rejection
from fastkernels.registry import OpEntry
from fastkernels.spec import Compare

_FAMILY = "normal"
_NUM_ROWS = 257
"""Enough that a wrong answer differs from chance, also where a row has few elements."""
_ROUNDINGS = frozenset({"one_precision_lower", "truncated"})


def null_matrix(entry: OpEntry, groups: Sequence[Group], generator: torch.Generator) -> list[NullRecord]:
    """One row a null and dtype; a null counts as passed when any output accepts it."""
    seen: set[torch.dtype] = set()
    rows = []
    for group in groups:
        if group.dtype not in seen:
            seen.add(group.dtype)
            rows += _rows(entry, group, generator)
    return rows


def _rows(entry: OpEntry, group: Group, generator: torch.Generator) -> list[NullRecord]:
    shape = _shape(group, generator)
    case, other = (
        draw_case(group.op, group.init, group.dtype, shape, _FAMILY, group.params, generator) for _ in range(2)
    )
    right = expectation(group.exact, case, group.oracle_device)
    previous = expectation(group.exact, other, group.oracle_device)
    lower = None
    if group.dtype in LOWER_PRECISION:
        low_case = lowered(case, LOWER_PRECISION[group.dtype])
        params, exact = group.params, group.exact
        group.use_params(dict(low_case.params))
        lower = expectation(group.exact, low_case, group.oracle_device)
        group.params, group.exact = params, exact
    dtype = str(group.dtype).removeprefix("torch.")
    return [NullRecord(dtype, name, *_outcome(entry, group, name, case, right, previous, lower)) for name in NULLS]


def _shape(group: Group, generator: torch.Generator) -> Shape:
    axes = {name: sizes[0] for name, sizes in group.op.spec.example_axes.items()}
    geometry = None
    if group.op.spec.uses_pages:
        geometry = draw_geometry(generator, phases_of(group.op)[-1], num_seqs=17, max_len=40, page_size=16)
    axes |= {name: _NUM_ROWS for name in free_axes(group.op) if name not in axes}
    return Shape((_NUM_ROWS,), axes, geometry, is_strided=False, has_optional=True)


def _outcome(
    entry: OpEntry,
    group: Group,
    name: str,
    case: object,
    right: Expectation,
    previous: Expectation,
    lower: Expectation | None,
) -> tuple[str, str]:
    applied, reason = 0, "the answer's shape rules it out"
    tolerances = tolerances_for(entry.name, group.dtype, _FAMILY, right)
    inputs = {n.split(":", 1)[1]: t for n, t in flatten(case).items()}  # type: ignore[arg-type]
    for expected, was, low in _outputs(right, previous, lower):
        tolerance = tolerances[expected.name]
        if name in _ROUNDINGS and not expected.value.is_floating_point():
            reason = "the answer is not a float"
            continue
        if name == "truncated" and (tolerance.lean or expected.compare is not Compare.VALUES):
            reason = "the answer is rounded more than once, or never"
            continue
        answer = expected.value.to(expected.dtype)
        low_answer = None if low is None else low.value.to(_lower_dtype(expected.dtype)).to(expected.dtype)
        null = NULLS[name](NullInput(answer, was.value.to(expected.dtype), inputs, low_answer, expected.value))
        if null is None or _same(null, answer):
            continue
        applied += 1
        try:
            if expected.compare is Compare.SAMPLE:
                check_samples(expected, null, dict(case.inputs))  # type: ignore[attr-defined]
            else:
                check_value(right, expected, null, tolerance)
        except Rejection as rejection:
            reason = rejection.message
            continue
        return "passed", f"accepted as {expected.name} in the family {_FAMILY}"
    return ("rejected" if applied else "not applicable"), reason


def _outputs(
    right: Expectation, previous: Expectation, lower: Expectation | None
) -> list[tuple[Expected, Expected, Expected | None]]:
    rows = []
    for index, expected in enumerate(right.outputs):
        was, low = previous.outputs[index], None if lower is None else lower.outputs[index]
        if expected is not None and was is not None:
            rows.append((_on_cpu(expected), _on_cpu(was), None if low is None else _on_cpu(low)))
    for name, after in right.mutated.items():
        low = None if lower is None else lower.mutated[name]
        rows.append((_on_cpu(after), _on_cpu(previous.mutated[name]), None if low is None else _on_cpu(low)))
    return rows


def _on_cpu(expected: Expected) -> Expected:
    of = None if expected.of is None else expected.of.cpu()
    return replace(expected, value=expected.value.cpu(), of=of)


def _lower_dtype(dtype: torch.dtype) -> torch.dtype:
    return LOWER_PRECISION.get(dtype, dtype)


def _same(null: Tensor, answer: Tensor) -> bool:
    return null.shape == answer.shape and bool(
        torch.equal(torch.nan_to_num(null.double()), torch.nan_to_num(answer.double()))
    )
