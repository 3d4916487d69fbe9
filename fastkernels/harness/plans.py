"""Which calls are made: of which cases, with which values, looked at or not. All of it is drawn, none is told."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import torch

from fastkernels.capture.case import Case
from fastkernels.harness.groups import Group, case_bytes
from fastkernels.harness.pool import PlannedCall, Pool
from fastkernels.harness.vary import draw_variation, touch

FETCH_SHARE = 0.25
MOST_CHECKED = 6  # calls of a visit of which that share is looked at; of a longer visit no more of them


def timed_pools(groups: Sequence[Group], count: int) -> list[tuple[Group, list[Case]]]:
    """The captured cases that move the most bytes, one a phase first; without captures, a drawn one."""
    captured = [(g, pool) for g in groups for pool in g.pools if pool[0].family == "captured"]
    ranked = sorted(captured, key=lambda item: -case_bytes(item[1][0]))
    chosen: list[tuple[Group, list[Case]]] = []
    seen = set()
    for item in ranked:
        phase = item[1][0].phase
        if phase not in seen:
            seen.add(phase)
            chosen.append(item)
    chosen += [item for item in ranked if not any(item is c for c in chosen)]
    if not chosen:
        largest = max(((g, p) for g in groups for p in g.pools), key=lambda item: case_bytes(item[1][0]))
        chosen = [(largest[0], largest[1][:1])]
    return chosen[:count]


def near_duplicates(pool: Pool, index: int, generator: torch.Generator) -> list[PlannedCall]:
    """A varied call, then twice the same but for a few elements: the largest of a row, then any."""
    variations = [draw_variation(generator)]
    place = pool.decisive_place(index, variations[0], generator)
    for where in (place, None):
        variations.append(touch(variations[-1], pool.num_varied, generator, where))
    return [PlannedCall(index, v, True, bool(secrets.randbelow(2)), is_echoed=pool.is_small) for v in variations]


def draw_plan(pool: Pool, count: int) -> list[PlannedCall]:
    """Calls on random cases with fresh values, some but for a few elements those of the call before; a secret
    share is fetched, and half of that is sealed as well.

    At least one call of a plan is not sealed, so that it can be timed.
    """
    generator = torch.Generator().manual_seed(secrets.randbits(62))
    thinned = min(1.0, MOST_CHECKED / count)
    plan: list[PlannedCall] = []
    for index in range(count):
        is_fetched = _happens(FETCH_SHARE * thinned)
        is_sealed = is_fetched and index > 0 and _happens(0.5)
        entry, variation = secrets.randbelow(pool.num_cases), draw_variation(generator)
        if plan and _happens(thinned / 3):
            entry, before = plan[-1].index, plan[-1].variation
            assert before is not None
            variation, is_fetched = touch(before, pool.num_varied, generator), True
        is_echoed = pool.is_small or secrets.randbelow(4) == 0
        plan.append(PlannedCall(entry, variation, is_fetched, is_sealed, is_echoed))
    return plan


def _happens(probability: float) -> bool:
    return secrets.randbelow(1 << 20) < probability * (1 << 20)
