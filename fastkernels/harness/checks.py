"""One answer against one expectation: arity, kind, form, values, and that older answers still stand."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastkernels.harness.compare import Expected, check_form, check_values
from fastkernels.harness.expect import Expectation
from fastkernels.harness.sampling import check_samples
from fastkernels.harness.side import Call, Part
from fastkernels.harness.tolerance import Error, Tolerance
from fastkernels.harness.verdict import Rejection, Verdict
from fastkernels.op import Op
from fastkernels.spec import Compare


def check_call(
    op: Op, expectation: Expectation, call: Call, tolerance: Tolerance, inputs: Mapping[str, object]
) -> Error:
    """The worst error of a fetched call.

    Errors: Rejection with what is wrong.
    """
    assert call.parts is not None
    wanted, given = expectation.outputs, call.parts
    if not wanted and len(given) == 1 and given[0].kind == "none":
        given = ()
    if len(wanted) != len(given) or (len(wanted) > 1 and not call.is_sequence):
        raise Rejection(
            Verdict.INCORRECT_SHAPE, f"{len(given)} values were returned, the contract returns {len(wanted)}."
        )
    error = Error()
    for expected, part in zip(wanted, given, strict=True):
        answer = _tensor_of(expected, part)
        if expected is None or answer is None:
            continue
        is_strided_ok = op.spec.outputs[expected.name].may_be_strided
        check_form(
            expected,
            answer.shape,
            answer.stride(),
            str(answer.dtype).removeprefix("torch."),
            is_strided_ok=is_strided_ok,
        )
        if expected.compare is Compare.SAMPLE:
            check_samples(expected, answer, inputs)
        else:
            error = error.worst(check_values(expected, answer.to(expected.value.device), tolerance))
    for name, expected_after in expectation.mutated.items() if call.after else ():
        after = call.after[name].to(expected_after.value.device)
        error = error.worst(check_values(expected_after, after, tolerance))
    return error


def _tensor_of(expected: Expected | None, part: Part) -> Tensor | None:
    name = expected.name if expected else "a value"
    if expected is None:
        if part.kind == "none":
            return None
        raise Rejection(Verdict.INCORRECT_SHAPE, "A value was returned where the contract returns None.")
    if part.kind == "none":
        raise Rejection(Verdict.INCORRECT_SHAPE, f"{name} is None, the contract returns a tensor.")
    if part.kind == "other":
        kind = part.description.get("type")
        raise Rejection(
            Verdict.CHEATING, f"{name} is a {kind}, not exactly a torch.Tensor: its values are not there yet."
        )
    if part.kind == "too_large":
        shape = part.description.get("shape")
        raise Rejection(Verdict.INCORRECT_SHAPE, f"{name} has shape {shape}, expected {list(expected.value.shape)}.")
    if part.description.get("problem"):
        raise Rejection(Verdict.CHEATING, f"{name} {part.description['problem']}.")
    assert part.tensor is not None
    return part.tensor


def check_echo(call: Call, earlier: Mapping[int, tuple[Part, ...]]) -> None:
    """An answer that was fetched before must still hold the same bytes.

    Errors: Rejection INCORRECT_NUMERICAL.
    """
    if call.echo is None or call.echo[0] not in earlier:
        return
    sequence, parts = call.echo
    for then, now in zip(earlier[sequence], parts, strict=False):
        if then.tensor is None or now.tensor is None:
            continue
        if then.tensor.shape != now.tensor.shape or not torch.equal(_bits(then.tensor), _bits(now.tensor)):
            raise Rejection(
                Verdict.INCORRECT_NUMERICAL,
                "An earlier answer changed after it was given: it shares memory with an argument or a later answer.",
            )


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().reshape(-1).view(torch.uint8)
