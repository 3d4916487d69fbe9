"""Fresh values for each call from a pool of inputs: the same arithmetic on both sides.

A call's floats are its pool entry, rolled and multiplied elementwise by a vector that the judge draws
for that call; integers are shifted within their bound; what only makes sense beside other inputs
changes as the contract says (spec.Vary). No value of one call tells the next one's, and no linear or
odd symmetry of an op maps one answer to another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastkernels.capture.tensors import stored
from fastkernels.op import Op
from fastkernels.spec import Role, TensorSpec

PERIOD = 4093  # prime, so that it lines up with no axis
_LARGEST, _LEAST_TOUCHED = 1.25, 1.5
"""Of a multiplier's magnitude, and of one that was touched."""
_FLOATS = frozenset({Role.ACTIVATION, Role.LOGITS})
_PLACES = frozenset({Role.INDEX, Role.OPTIONAL_INDEX, Role.POSITION})


@dataclass(frozen=True)
class Variation:
    """roll: elements; multiplier: [PERIOD] float32 in +-[0.75, 1.25], where touched in +-[1.5, 2.5]; shift: added to
    integers (on a GPU an int64 tensor, because the host must not know it before the clock runs)."""

    roll: int
    multiplier: Tensor
    shift: int | Tensor


@dataclass(frozen=True)
class Rule:
    """How one input is varied.

    kind: "floats"; "integers", shifted within `bounds` (one for all, or one for each index of the last axis but one;
    none: any int64 will do); "coupled", by spec.Vary: axis is what it rolls along, counted from the last.
    """

    kind: str
    bounds: tuple[int, ...] = ()
    axis: int | None = None
    share: float = 0.0
    is_few: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rule:
        return cls(**{**data, "bounds": tuple(data["bounds"])})

    def bound(self, device: torch.device) -> int | Tensor | None:
        """What integers lie below, as `vary` takes it: made once, because nothing may be copied to a GPU while its
        stream waits."""
        if len(self.bounds) > 1:
            return torch.tensor(self.bounds, device=device)[:, None]
        return self.bounds[0] if self.bounds else None

    def num_places(self, x: Tensor) -> int:
        """In how many places `touch` can change `x`."""
        return _num_rows(stored(x)) if self.kind == "integers" else stored(x).numel()


def rules_of(op: Op, given: Mapping[str, Tensor]) -> dict[str, Rule]:
    """The rule of each of the `given` inputs that is varied.

    Indices and positions are varied only where nothing else is: beside activations they are often ordered, or few
    make sense.
    """
    specs = {name: spec for name, spec in op.spec.inputs.items() if name in given}
    rules = {name: rule for name, spec in specs.items() if (rule := _rule(op, spec, specs, given))}
    if rules.keys() - {name for name, spec in specs.items() if spec.role is Role.SEED}:
        return rules
    places = {name: spec for name, spec in specs.items() if spec.role in _PLACES}
    return rules | {name: Rule("integers", _bounds(op, spec, specs, given)) for name, spec in places.items()}


def _rule(op: Op, spec: TensorSpec, specs: Mapping[str, TensorSpec], given: Mapping[str, Tensor]) -> Rule | None:
    if spec.role in _FLOATS:
        return Rule("floats")
    if spec.role is Role.SEED or (spec.bound and spec.role in (Role.TOKEN_ID, Role.COUPLED)):
        return Rule("integers", _bounds(op, spec, specs, given))
    if vary := spec.vary:
        axis = spec.axes.index(vary.rolls) - len(spec.axes) if vary.rolls else None
        return Rule("coupled", axis=axis, share=vary.share, is_few=vary.is_few)
    return None


def _bounds(op: Op, spec: TensorSpec, specs: Mapping[str, TensorSpec], given: Mapping[str, Tensor]) -> tuple[int, ...]:
    if spec.bound is None:
        return ()
    if spec.bound.isdigit():
        return (int(spec.bound),)
    found = getattr(op, spec.bound, None)
    if isinstance(found, Sequence):
        return tuple(int(size) for size in found)
    if not isinstance(found, int):  # no constant of the op: an axis of this call
        name, axes = next((n, s.axes) for n, s in specs.items() if spec.bound in s.axes)
        found = given[name].shape[axes.index(spec.bound) - len(axes)]
    return (int(found),)


def draw_variation(generator: torch.Generator) -> Variation:
    magnitude = 0.75 + 0.5 * torch.rand(PERIOD, generator=generator)
    sign = 1 - 2 * torch.randint(0, 2, (PERIOD,), generator=generator)
    roll, shift = torch.randint(1, 1 << 30, (2,), generator=generator).tolist()
    return Variation(roll, magnitude * sign, shift)


def vary(x: Tensor, rule: Rule, variation: Variation, bound: int | Tensor | None) -> Tensor:
    """bound: the rule's, on the device of `x`. What is expanded stays so: every repetition is varied alike."""
    if 0 in x.stride() and (base := stored(x)).shape != x.shape:
        return vary(base, rule, variation, bound).expand(x.shape)
    if rule.kind == "floats":
        return vary_floats(x, variation)
    return vary_integers(x, variation, bound) if rule.kind == "integers" else _vary_coupled(x, rule, variation)


def vary_floats(x: Tensor, variation: Variation) -> Tensor:
    """Same shape and dtype as `x`, contiguous; rounded once to the dtype of `x`. What is infinite stays as it is: of a
    token that is masked out no other sign may be made."""
    flat = x.reshape(-1)
    if flat.numel() == 0:
        return x.clone()
    rolled = torch.roll(flat, variation.roll % flat.numel())
    factors = _repeated(variation.multiplier.to(x.device), flat.numel())
    return torch.where(rolled.isinf(), rolled, (rolled.float() * factors).to(x.dtype)).reshape(x.shape)


def vary_integers(x: Tensor, variation: Variation, bound: int | Tensor | None) -> Tensor:
    """Shifted within `bound`, the elements of a row alike: those that were distinct stay so. What is negative stands
    for none and stays as it is; without a bound nothing does."""
    extra = _repeated((variation.multiplier.to(x.device) < 0).to(x.dtype), _num_rows(x))
    shifted = x + variation.shift + extra.reshape((*x.shape[:-1], 1) if x.ndim > 1 else x.shape)
    return shifted if bound is None else torch.where(x < 0, x, (shifted % bound).to(x.dtype))


def _vary_coupled(x: Tensor, rule: Rule, variation: Variation) -> Tensor:
    if x.numel() == 0:
        return x.clone()
    if rule.axis is not None:
        x = torch.roll(x, variation.roll % x.shape[rule.axis], rule.axis)
    if not rule.share:
        return x.clone()
    size = variation.multiplier.to(x.device).abs()
    if rule.is_few:
        size = size * (size >= size[: x.numel()].amax().clamp_max(_LEAST_TOUCHED))
    less = _repeated(1 - size * (rule.share / _LARGEST), x.numel())
    return (x.reshape(-1).float() * less).to(x.dtype).reshape(x.shape)


def _num_rows(x: Tensor) -> int:
    return math.prod(x.shape[:-1]) if x.ndim > 1 else x.numel()


def _repeated(vector: Tensor, count: int) -> Tensor:
    return vector.repeat(-(-count // PERIOD))[:count]


def touch(variation: Variation, num_places: int, generator: torch.Generator, place: int | None = None) -> Variation:
    """The same values but for one element (of integers: one row) in PERIOD, at `place` or one that nobody can guess:
    whoever answers from a fingerprint of a few elements answers wrongly."""
    if place is None:
        place = int(torch.randint(0, max(1, min(num_places, PERIOD)), (1,), generator=generator))
    multiplier = variation.multiplier.clone()
    multiplier[place] = -multiplier[place].sign() * (_LEAST_TOUCHED + torch.rand((), generator=generator))
    return Variation(variation.roll, multiplier, variation.shift)
