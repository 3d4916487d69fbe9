"""One answer against one expectation: arity, kind, form, values, and that older answers still stand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastkernels.harness.answers import Part
from fastkernels.harness.compare import NOISE_FACTOR, Expected, Finding, RowNoise, check_form, check_values
from fastkernels.harness.expect import Expectation
from fastkernels.harness.sampling import check_places, check_same_tokens, check_samples
from fastkernels.harness.side import Call
from fastkernels.harness.tolerance import K, Tolerance
from fastkernels.harness.verdict import Rejection, Verdict
from fastkernels.op import Op
from fastkernels.spec import Compare


def check_call(
    op: Op,
    expectation: Expectation,
    call: Call,
    tolerances: Mapping[str, Tolerance],
    inputs: Mapping[str, object],
    factor: float = 1.0,
) -> dict[str, Finding]:
    """What a fetched call came to, by the name of what was compared.

    factor: of everything that is allowed.

    Errors: Rejection with what is wrong.
    """
    assert call.parts is not None
    wanted, given = expectation.outputs, call.parts
    if not wanted and len(given) == 1 and given[0].kind == "none":
        given = ()
    if len(wanted) != len(given):
        raise Rejection(
            Verdict.INCORRECT_SHAPE, f"{len(given)} values were returned, the contract returns {len(wanted)}."
        )
    if call.is_sequence != expectation.is_sequence:
        returned, contract = (
            "a tuple" if it else "the value itself" for it in (call.is_sequence, expectation.is_sequence)
        )
        raise Rejection(Verdict.INCORRECT_SHAPE, f"Returned was {returned}, the contract returns {contract}.")
    findings: dict[str, Finding] = {}
    for expected, part in zip(wanted, given, strict=True):
        answer = _tensor_of(expected, part)
        if expected is None or answer is None:
            continue
        dtype = str(answer.dtype).removeprefix("torch.")
        check_form(expected, answer.shape, answer.stride(), dtype, op.spec.outputs[expected.name])
        if expected.compare is Compare.SAMPLE:
            check_samples(expected, answer, inputs)
        else:
            answer = answer.to(expected.value.device)
            findings[expected.name] = check_value(expectation, expected, answer, tolerances[expected.name], factor)
    for name, expected in expectation.mutated.items() if call.after else ():
        after = call.after[name].to(expected.value.device)
        findings[expected.name] = check_value(expectation, expected, after, tolerances[expected.name], factor)
    return findings


def check_value(
    expectation: Expectation, expected: Expected, answer: Tensor, tolerance: Tolerance, factor: float = 1.0
) -> Finding:
    """One part of an answer; one that is off is looked at again with what ill-conditioned rows are granted.

    Errors: Rejection INCORRECT_NUMERICAL.
    """
    allowed = tolerance.scaled(factor)
    try:
        return check_values(expected, answer, allowed)
    except Rejection:
        noise = expectation.noise.get(expected.name)
        if noise is None or not bool(noise.is_ill.any()):
            raise
    return check_values(expected, answer, allowed, noise.times(factor))


def beside_baseline(
    expectation: Expectation, tolerances: Mapping[str, Tolerance], found: Mapping[str, Finding], *, is_widened: bool
) -> tuple[Expectation, dict[str, Tolerance]]:
    """What a candidate is held to where the baseline's own answer to the same inputs came to `found`: at least K times
    its error where `is_widened`. An ill-conditioned row's error widens that row's bound alone, and always."""
    widened = dict(tolerances)
    for name, finding in found.items() if is_widened else ():
        wider = widened[name].widened(finding.error)
        if wider != widened[name] and finding.rows is not None:
            noise = expectation.noise.get(name)
            if noise is not None and bool(noise.is_ill.any()):
                wider = widened[name].widened(finding.rows.error_of(~noise.is_ill))
        widened[name] = wider

    def noise_beside() -> dict[str, RowNoise]:
        noise = dict(expectation.noise)
        for name, finding in found.items():
            if name in noise and finding.rows is not None:
                noise[name] = noise[name].worst(finding.rows.only(noise[name].is_ill).times(K / NOISE_FACTOR))
        return noise

    return replace(expectation, measure_noise=noise_beside), widened


def worst_of(findings: Mapping[str, Finding]) -> Finding:
    worst = Finding()
    for finding in findings.values():
        worst = worst.worst(finding)
    return worst


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


def digest(parts: Sequence[Part]) -> tuple[str, ...]:
    """Of each returned value its shape, dtype and bytes."""
    found = []
    for part in parts:
        text = part.kind
        if part.tensor is not None:
            bits = _bits(part.tensor).numpy()
            text = f"{tuple(part.tensor.shape)} {part.tensor.dtype} {hashlib.blake2b(bits.data).hexdigest()}"
        found.append(text)
    return tuple(found)


def check_again(before: tuple[str, ...], parts: Sequence[Part]) -> None:
    """An answer that was looked at must hold the same bytes when it is shown again; before: its digest.

    Errors: Rejection INCORRECT_NUMERICAL.
    """
    if digest(parts) != before:
        raise Rejection(
            Verdict.INCORRECT_NUMERICAL,
            "An earlier answer changed after it was given: it shares memory with an argument or a later answer.",
        )


class Draws:
    """What was drawn in calls of other requests each, tested together: an op has many calls, and a call few draws."""

    def __init__(self) -> None:
        self._places: list[Tensor] = []

    def add(self, expectation: Expectation, call: Call, inputs: Mapping[str, object]) -> None:
        """Errors: Rejection INCORRECT_NUMERICAL of what one call shows."""
        for expected, part in zip(expectation.outputs, call.parts or (), strict=False):
            if expected is not None and expected.compare is Compare.SAMPLE:
                assert part.tensor is not None
                self._places.append(check_samples(expected, part.tensor, inputs))

    def check(self) -> None:
        """Errors: Rejection INCORRECT_NUMERICAL of what they show together."""
        if self._places:
            check_places(torch.cat(self._places))


def check_same_draws(expectation: Expectation, before: Call, call: Call) -> None:
    """Of two calls with the same inputs, seeds included, what was sampled must be the same.

    Errors: Rejection INCORRECT_NUMERICAL.
    """
    for expected, then, now in zip(expectation.outputs, before.parts or (), call.parts or (), strict=False):
        if expected is not None and expected.compare is Compare.SAMPLE:
            assert then.tensor is not None
            assert now.tensor is not None
            check_same_tokens(now.tensor, then.tensor)


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().reshape(-1).view(torch.uint8)
