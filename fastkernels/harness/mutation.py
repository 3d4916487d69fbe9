"""What a call may not have written to: every byte of its arguments, guard bands included."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fastkernels.harness.arena import GUARD_BYTES, Layout
from fastkernels.harness.pool import Pool
from fastkernels.harness.verdict import Rejection, Verdict


def check_inputs(pool: Pool, region: Tensor, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mutable tensors as they are now; everything else must be as it was given, guard bands included.

    Errors: Rejection UNDECLARED_MUTATION.
    """
    untouched = region.clone()
    after = {}
    views, expected = pool.layout.views(region), pool.layout.views(untouched)
    for name in pool.mutable:
        after[name] = views[name].clone()
    pool.layout.write(untouched, given)
    for name in pool.mutable:
        expected[name].copy_(after[name])
    same = region == untouched
    if not bool(same.all()):
        offset = int((~same).nonzero()[0])
        raise Rejection(Verdict.UNDECLARED_MUTATION, _what_lies_at(pool.layout, offset))
    return after


def _what_lies_at(layout: Layout, offset: int) -> str:
    for slot in layout.slots:
        if slot.offset <= offset < slot.offset + slot.num_bytes:
            name = slot.name.removeprefix("in:")
            return f"{name} was written to (byte {offset - slot.offset}); the contract does not let the op write to it."
    before = [slot for slot in layout.slots if slot.offset <= offset]
    name = before[-1].name.removeprefix("in:") if before else "the first argument"
    return f"Memory beyond {name} was written to: an out-of-bounds write into its guard band of {GUARD_BYTES} bytes."
