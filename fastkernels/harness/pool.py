"""What a side is called with: cases of one shape, laid out and varied alike on both sides of the process boundary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastkernels.capture.case import Case
from fastkernels.capture.tensors import copy_to
from fastkernels.harness.arena import ALIGNMENT, Layout
from fastkernels.harness.changes import Changes
from fastkernels.harness.control import ANSWER_BYTES, HELD_ANSWERS
from fastkernels.harness.expect import expectation
from fastkernels.harness.vary import PERIOD, Variation, rules_of, vary
from fastkernels.op import Op

_SMALL_BYTES = 4 << 20
MOST_HELD, MOST_HELD_BYTES = 64, 1 << 30


@dataclass(frozen=True)
class PlannedCall:
    """One call to come: which case, how varied, whether its answer is looked at, and whether that is copied
    before the call may say that it is done."""

    index: int
    variation: Variation | None
    is_fetched: bool
    is_sealed: bool = False
    is_echoed: bool = True  # the inputs as they are after the call are looked at too


def flatten(case: Case) -> dict[str, Tensor]:
    """Every tensor that a call reads, under one flat name each."""
    tensors = {f"in:{n}": v for n, v in case.inputs.items() if isinstance(v, Tensor)}
    if case.context:
        tensors |= {f"ctx:{n}": t for n, t in case.context.tensors().items()}
    tensors |= {f"cache:{i}": t for i, t in enumerate(case.caches)}
    return tensors


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """On `device` with the same strides, which a plain move may change."""
    return tensor if tensor.device == device else copy_to(tensor, device)


def params_bytes(params: Mapping[str, Tensor]) -> int:
    return Layout.of(params).num_bytes if params else ALIGNMENT


class Pool:
    """Cases of one shape that a side takes its inputs from, and how they may be varied."""

    def __init__(
        self, op: Op, cases: Sequence[Case], answer_bytes: int, device: torch.device, exact: Op | None = None
    ) -> None:
        """device: where the judge varies and compares; the GPU's arithmetic is the worker's then. exact: the
        definition, where it is wanted what it writes to."""
        self.cases = list(cases)
        self.device, self._exact = device, exact
        self._image: Tensor | None = None
        self.flat = [{name: _to(tensor, device) for name, tensor in flatten(case).items()} for case in cases]
        self.layout = Layout.of(self.flat[0])
        self.mutable = {f"in:{n}" for n in op.spec.mutates if n != "kv_cache"}
        if "kv_cache" in op.spec.mutates:
            self.mutable |= {name for name in self.flat[0] if name.startswith("cache:")}
        given = {name.removeprefix("in:"): x for name, x in self.flat[0].items() if name.startswith("in:")}
        self.rules = {f"in:{name}": rule for name, rule in rules_of(op, given).items()}
        self._bounds = {name: rule.bound(device) for name, rule in self.rules.items()}
        self.expected_bytes = answer_bytes
        self.answer_bytes = answer_bytes + self.layout.num_bytes + (1 << 16)
        self.poison_bytes = min(answer_bytes, 64 << 20)

    @property
    def is_small(self) -> bool:
        """Whether the inputs of every fetched call are looked at; of larger ones only some are."""
        return self.layout.num_bytes < _SMALL_BYTES

    @property
    def is_all_published(self) -> bool:
        """Whether every answer is copied out, wanted or not, so that nobody can tell which are looked at."""
        return self.answer_bytes < _SMALL_BYTES

    @property
    def num_held(self) -> int:
        """Answers that a worker keeps while they are checked: those of all calls, but for very large ones."""
        return max(HELD_ANSWERS, min(MOST_HELD, MOST_HELD_BYTES // max(1, self.expected_bytes)))

    @property
    def num_cases(self) -> int:
        return len(self.cases)

    @property
    def num_varied(self) -> int:
        """Places that `touch` may choose from: of the smallest argument of floats or integers, so that all change; of
        coupled ones of the largest, for the smallest may have one or two."""
        places: dict[str, list[int]] = {"floats": [], "integers": [], "coupled": []}
        for name, rule in self.rules.items():
            if rule.kind != "coupled" or rule.share:
                places[rule.kind].append(rule.num_places(self.flat[0][name]))
        if places["coupled"] and not places["floats"]:
            return max(places["coupled"])
        return min(places["floats"] or places["integers"], default=1)

    def decisive_place(self, index: int, variation: Variation, generator: torch.Generator) -> int | None:
        """The place of the multiplier that scales the largest element of a random row: an argmax hangs on it."""
        floats = [name for name, rule in self.rules.items() if rule.kind == "floats"]
        if not floats:
            return None
        values = self.values(index, variation)[floats[0]]
        rows = values.reshape(-1, values.shape[-1])
        row = int(torch.randint(0, len(rows), (1,), generator=generator))
        return (row * rows.shape[-1] + int(rows[row].argmax())) % PERIOD

    def changes(self, index: int, variation: Variation | None) -> Changes | None:
        """Where one call writes to its arguments; None of an op that writes to none."""
        if not self.mutable or self._exact is None:
            return None
        case = self.case(index, variation)
        mutated = expectation(self._exact, case, self.device).mutated
        return Changes.of(self.layout, flatten(case), {name: expected.value for name, expected in mutated.items()})

    @property
    def arena_bytes(self) -> int:
        return len(self.cases) * self.layout.num_bytes + ANSWER_BYTES + self.answer_bytes + 16 * ALIGNMENT

    def values(self, index: int, variation: Variation | None) -> dict[str, Tensor]:
        """The flat tensors of one call, as the worker will see them."""
        flat = dict(self.flat[index])
        if variation is not None:
            flat |= {n: vary(flat[n], rule, variation, self._bounds[n]) for n, rule in self.rules.items()}
        return flat

    def image(self, index: int, variation: Variation | None) -> Tensor:
        """The bytes (uint8) of one call's region, guard bands included; the next call's take their place."""
        if self._image is None:
            self._image = torch.empty(self.layout.num_bytes, dtype=torch.uint8)
        self.layout.write(self._image, self.values(index, variation))
        return self._image

    def case(self, index: int, variation: Variation | None) -> Case:
        """The case of one call, for the definition."""
        base, flat = self.cases[index], self.values(index, variation)
        inputs = {n: flat.get(f"in:{n}", v) for n, v in base.inputs.items()}
        return Case(
            op=base.op,
            init=base.init,
            inputs=inputs,
            params=base.params,
            dtype=base.dtype,
            context=base.context,
            caches=tuple(flat[f"cache:{i}"] for i in range(len(base.caches))),
            phase=base.phase,
            family=base.family,
        )
