"""No timed call has the inputs of another one, whatever an op takes."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastkernels.harness.expect import baseline_class, expectation
from fastkernels.harness.hidden_shapes import hidden_shapes
from fastkernels.harness.inputs import draw_case, draw_params
from fastkernels.harness.plans import draw_plan, near_duplicates
from fastkernels.harness.pool import PlannedCall, Pool
from fastkernels.harness.vary import Rule, draw_variation, rules_of, touch, vary_integers
from fastkernels.op import Op
from fastkernels.registry import ops

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_integers_move_inside_their_bound_and_those_of_a_row_together() -> None:
    x = torch.rand(20, 50, generator=generator()).argsort(-1).to(torch.int32)
    x[:, ::7] = -1
    for seed in range(20):
        variation = draw_variation(generator(seed))
        varied = vary_integers(x, variation, 50)
        assert varied.dtype == x.dtype
        assert torch.equal(varied < 0, x < 0)
        assert int(varied.max()) < 50
        moved = (varied - x)[:, 1:7] % 50
        assert (moved == moved[:, :1]).all()
        assert len(moved[:, 0].unique()) == 2  # a row's move does not tell the next one's
        touched = touch(variation, len(x), generator(seed))
        assert int((vary_integers(x, touched, 50) != varied).any(-1).sum()) == 1


def test_integers_without_a_bound_wrap_and_those_with_many_stay_below_each() -> None:
    seeds = torch.tensor([-(1 << 63), -1, 0, (1 << 63) - 1])
    variation = draw_variation(generator(1))
    assert (vary_integers(seeds, variation, None) != seeds).all()
    bounds = Rule("integers", bounds=(7, 1, 5)).bound(torch.device("cpu"))
    ids = torch.zeros(100, 3, 4, dtype=torch.int64)
    varied = vary_integers(ids, variation, bounds)
    assert varied.amax((0, 2)).tolist() != [0, 0, 0]
    assert (varied.amax((0, 2)) < torch.tensor([7, 1, 5])).all()


NOTHING_BUT_COUPLED = (
    *("draw_seeds", "embedding_bag", "moe_align", "gaussian_projection", "rasterize_gaussians", "tile_intersection"),
    *("gaussian_renderer", "gaussian_splatting"),
)


def drawn_pool(name: str) -> tuple[Op, Pool]:
    cls = baseline_class(ops()[name])
    init = cls.spec.examples[0]
    op = cls(**init)
    params = draw_params(op, generator())
    op.load_state_dict(params)
    shape = hidden_shapes(op, generator(), 3)[2]
    return op, Pool(op, [draw_case(op, init, torch.float32, shape, "normal", params, generator())], 1000, CPU)


def changed(pool: Pool, a: PlannedCall, b: PlannedCall) -> set[str]:
    one, other = (pool.values(call.index, call.variation) for call in (a, b))
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize("name", NOTHING_BUT_COUPLED)
def test_no_answer_holds_for_two_timed_calls(name: str) -> None:
    """Of near-duplicates the inputs differ too."""
    op, pool = drawn_pool(name)
    plan = [call for _ in range(20) for call in draw_plan(pool, 4)]
    plan += near_duplicates(pool, 0, generator())
    for a, b in itertools.pairwise(plan):
        assert changed(pool, a, b)
    op.double()
    distinct = {call.variation.roll: call for call in plan if call.variation}  # near-duplicates may have one answer
    answers = [expectation(op, pool.case(0, call.variation), CPU).outputs for call in list(distinct.values())[:3]]
    for one, other in itertools.combinations(answers, 2):
        assert any(not torch.equal(a.value, b.value) for a, b in zip(one, other, strict=True) if a and b)


def test_every_op_has_inputs_that_are_varied() -> None:
    """A rule without a share only rolls."""
    for name, entry in ops().items():
        spec = baseline_class(entry).spec
        sizes = {axis: 2 for tensor in spec.inputs.values() for axis in tensor.axes}
        given = {n: torch.zeros([sizes[a] for a in t.axes]) for n, t in spec.inputs.items() if t.dtype != "python"}
        rules = rules_of(baseline_class(entry)(**spec.examples[0]), given)
        assert any(rule.kind != "coupled" or rule.share for rule in rules.values()), name
