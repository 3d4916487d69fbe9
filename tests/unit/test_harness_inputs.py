"""What the judge draws: every value inside its contract, batches whose parts agree, variations alike on both sides."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastkernels.cache import bind_caches
from fastkernels.capture.case import Case
from fastkernels.capture.replay import as_outputs
from fastkernels.context import Phase, set_forward_context
from fastkernels.harness.expect import baseline_class, expectation
from fastkernels.harness.geometry import Geometry, draw_geometry, redraw_pages
from fastkernels.harness.groups import Group, make_groups
from fastkernels.harness.hidden_shapes import FAMILIES
from fastkernels.harness.inputs import draw_floats
from fastkernels.harness.measurements import FOLDER, measured, measured_ops, published, read_record
from fastkernels.harness.tolerance import tolerance_for
from fastkernels.harness.vary import PERIOD, draw_variation, touch, vary_floats
from fastkernels.registry import OpEntry, ops
from fastkernels.spec import Compare, Role, TensorSpec, axis_size

ENTRIES = [e for e in ops().values() if e.name not in ("allreduce", "allgather")]
CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


geometries = st.builds(
    lambda seed, phase, num_seqs, max_len, page_size: draw_geometry(
        generator(seed), phase, num_seqs, max_len, page_size
    ),
    st.integers(0, 10**6),
    st.sampled_from(Phase),
    st.integers(1, 6),
    st.integers(1, 70),
    st.sampled_from((1, 8, 16)),
)


@settings(max_examples=80, deadline=None)
@given(geometries, st.booleans())
def test_batch_parts_agree(geometry: Geometry, is_redrawn: bool) -> None:
    g = redraw_pages(geometry, generator()) if is_redrawn else geometry
    context = g.context()
    starts, positions, slots = context.query_start_loc.tolist(), g.positions().tolist(), context.slot_mapping.tolist()
    assert starts[0] == 0
    assert starts[-1] == g.num_tokens == len(positions) == len(slots)
    assert len(set(slots)) == len(slots)
    for i in range(g.num_seqs):
        query_len, seq_len = starts[i + 1] - starts[i], int(context.seq_lens[i])
        assert 1 <= query_len <= seq_len
        for row, position in zip(range(starts[i], starts[i + 1]), range(seq_len - query_len, seq_len), strict=True):
            assert positions[row] == position
            page = int(context.block_table[i, position // g.page_size])
            assert slots[row] == page * g.page_size + position % g.page_size
    assert context.max_query_len == max(g.query_lens)
    assert context.max_seq_len == max(g.seq_lens)


@settings(max_examples=80, deadline=None)
@given(geometries)
def test_pages_belong_to_one_sequence_and_some_to_none(g: Geometry) -> None:
    owned = [page for pages in g.pages for page in pages]
    assert len(set(owned)) == len(owned)
    assert set(owned) < set(range(g.num_pages))
    for pages, length in zip(g.pages, g.seq_lens, strict=True):
        assert len(pages) == math.ceil(length / g.page_size)
    table = g.block_table()
    assert sorted(table[table >= 0].tolist()) == sorted(owned)
    assert (table[:, -1] == -1).all()  # never read, and a kernel that reads it is caught


@settings(max_examples=40, deadline=None)
@given(geometries)
def test_phase_says_what_the_batch_holds(g: Geometry) -> None:
    if g.phase is Phase.PREFILL:
        assert g.query_lens == g.seq_lens
    if g.phase is Phase.DECODE:
        assert set(g.query_lens) == {1}


def test_redrawn_pages_keep_every_shape_and_move() -> None:
    g = draw_geometry(generator(3), Phase.MIXED, num_seqs=5, max_len=70, page_size=8)
    other = redraw_pages(g, generator(4))
    assert (other.query_lens, other.seq_lens, other.num_pages) == (g.query_lens, g.seq_lens, g.num_pages)
    assert other.block_table().shape == g.block_table().shape
    assert other.pages != g.pages


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(Phase), st.integers(2, 6), st.sampled_from((40, 70)))
def test_ragged_batch_has_a_row_whose_empty_entries_lead_to_a_page_of_nobody(
    seed: int, phase: Phase, num_seqs: int, max_len: int
) -> None:
    drawn = draw_geometry(generator(seed), phase, num_seqs, max_len, page_size=16, is_ragged=True)
    for g in (drawn, redraw_pages(drawn, generator(seed + 1))):
        assert {1, max_len} <= set(g.seq_lens)
        owned = {page for pages in g.pages for page in pages}
        assert not owned & {0, g.num_pages - 1}  # what -1 becomes when it is clamped, or taken from behind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 257), (9000,), (2, 5, 64)])
def test_variation_is_the_same_on_both_sides_and_changes_all(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=generator()).to(dtype)
    variation = draw_variation(generator(1))
    ours, theirs = vary_floats(x, variation), vary_floats(x.clone(), variation)
    assert torch.equal(ours, theirs)
    assert (ours.shape, ours.dtype) == (x.shape, x.dtype)
    assert (ours != x).float().mean() > 0.99
    assert (ours.abs() != x.abs()).float().mean() > 0.98  # not only a sign
    assert (vary_floats(x, draw_variation(generator(2))) != ours).float().mean() > 0.99


def test_variation_keeps_what_is_masked_out() -> None:
    logits = torch.randn(4, 500, generator=generator())
    logits[:, ::3] = float("-inf")
    varied = vary_floats(logits, draw_variation(generator(1)))
    assert int(varied.isneginf().sum()) == int(logits.isneginf().sum())
    assert not varied.isposinf().any()


def test_variation_of_a_strided_view_is_that_of_its_values() -> None:
    wide = torch.randn(7, 40, generator=generator())
    variation = draw_variation(generator(1))
    assert torch.equal(vary_floats(wide[:, :33], variation), vary_floats(wide[:, :33].contiguous(), variation))
    assert vary_floats(torch.zeros(0, 5), variation).shape == (0, 5)


@pytest.mark.parametrize("num_elements", [1, 5, PERIOD - 1, PERIOD, 3 * PERIOD + 5])
def test_touch_changes_few_elements_and_at_least_one(num_elements: int) -> None:
    x = torch.randn(num_elements, generator=generator())
    variation = draw_variation(generator(1))
    for seed in range(30):
        touched = touch(variation, num_elements, generator(seed))
        num_changed = int((vary_floats(x, touched) != vary_floats(x, variation)).sum())
        assert 1 <= num_changed <= math.ceil(num_elements / PERIOD)


def test_touch_cannot_be_foreseen() -> None:
    x, variation, shared = torch.randn(PERIOD, generator=generator()), draw_variation(generator(1)), generator(2)
    before = vary_floats(x, variation)
    places = {int((vary_floats(x, touch(variation, PERIOD, shared)) != before).nonzero()[0]) for _ in range(20)}
    assert len(places) > 15


def _is_far_from_zero(x: Tensor) -> Tensor:
    return x.mean(-1) > 12


def _cancels(x: Tensor) -> bool:
    return bool((x.sum(-1).abs() < 0.05 * x.abs().sum(-1)).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_what_their_names_say(family: str) -> None:
    x = draw_floats(family, (200, 64), generator())
    assert x.shape == (200, 64)
    assert torch.isfinite(x).all()
    row = x.square().mean(-1).sqrt()
    facts = {
        "normal": lambda: 0.9 < float(x.std()) < 1.1,
        "heavy_tailed": lambda: float(x.abs().max() / x.std()) > 8,
        "integers": lambda: torch.equal(x, x.round()) and set(x.unique().tolist()) == set(range(-4, 5)),
        "cancellation": lambda: 0 < int(_is_far_from_zero(x).sum()) < 50 and _cancels(x[~_is_far_from_zero(x)]),
        "one_hot": lambda: bool((x.sum(-1) == 1).all()) and set(x.unique().tolist()) == {0, 1},
        "wide_range": lambda: float(row.max() / row[row > 0].min()) > 1e4 and 0 < int((row == 0).sum()) < 50,
    }
    assert facts[family]()
    assert draw_floats(family, (0, 8), generator()).shape == (0, 8)


def _groups(entry: OpEntry, num_shapes: int, dtype: torch.dtype = torch.float32) -> list[Group]:
    return make_groups(entry, [], (dtype,), num_shapes, CPU, generator(7))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_drawn_cases_keep_their_contract_and_the_baseline_runs_on_them(entry: OpEntry) -> None:
    num_shapes = 3 if entry.level < 3 else 2
    for group in _groups(entry, num_shapes):
        for number, pool in enumerate(group.pools):
            assert [case.family for case in pool] == list(FAMILIES)
            for case in pool:
                _check_contract(group, case)
            case = pool[number % len(FAMILIES)]
            assert _run(group, case) == [
                None if e is None else (e.value.shape, e.dtype) for e in expectation(group.exact, case, CPU).outputs
            ]


def _run(group: Group, case: Case) -> list[object]:
    op = group.op
    if case.caches:
        bind_caches(op, [cache.clone() for cache in case.caches])
    inputs = {n: v.clone() if isinstance(v, Tensor) else v for n, v in case.inputs.items()}
    with torch.no_grad(), set_forward_context(case.context):
        outputs = as_outputs(op(**inputs))
    return [None if o is None else (o.shape, o.dtype) for o in outputs]


def _check_contract(group: Group, case: Case) -> None:
    spec, sizes = group.op.spec, {n: v for n, v in vars(group.op).items() if type(v) is int}
    assert list(case.inputs) == list(spec.inputs)
    for name, tensor_spec in spec.inputs.items():
        if isinstance(case.inputs[name], Tensor):
            _check_axes(tensor_spec, case.inputs[name], sizes)
    for name, tensor_spec in spec.inputs.items():
        value = case.inputs[name]
        if value is None:
            assert tensor_spec.is_optional or tensor_spec.role is Role.SCALAR
        elif isinstance(value, Tensor):
            wanted = case.dtype if tensor_spec.dtype == "op" else getattr(torch, tensor_spec.dtype)
            assert value.dtype is wanted, name
            assert tensor_spec.may_be_strided or value.is_contiguous(), name
            _check_values(tensor_spec, value, sizes)
        else:
            assert isinstance(value, int)
    assert (case.context is not None) == spec.reads_context


def _check_axes(spec: TensorSpec, value: Tensor, sizes: dict[str, int]) -> None:
    axes = spec.axes[1:] if spec.axes[:1] == ("...",) else spec.axes
    assert value.ndim >= len(axes)
    for axis, size in zip(axes, value.shape[value.ndim - len(axes) :], strict=True):
        name = axis.split("*")[-1]
        if not name.isdigit() and name not in sizes:
            factor = int(axis.split("*")[0]) if "*" in axis else 1
            sizes[name] = size // factor
        assert axis_size(axis, sizes) == size, axis


def _check_values(spec: TensorSpec, value: Tensor, sizes: dict[str, int]) -> None:
    if value.numel() == 0:
        assert 0 in value.shape
    elif spec.role is Role.LOGITS:
        assert not value.isnan().any()
        assert value.isfinite().any(-1).all()
    elif spec.role is Role.ACTIVATION:
        assert torch.isfinite(value.float()).all()
    elif spec.role in (Role.TOKEN_ID, Role.POSITION, Role.INDEX, Role.TOP_K) and spec.bound:
        assert 0 <= int(value.min()) <= int(value.max()) <= axis_size(spec.bound, sizes) - (spec.role is not Role.TOP_K)
    elif spec.role is Role.OPTIONAL_INDEX and spec.bound:
        assert -1 <= int(value.min()) <= int(value.max()) < axis_size(spec.bound, sizes)
    elif spec.role is Role.TOP_P:
        assert 0 < float(value.min()) <= float(value.max()) <= 1
    elif spec.role is Role.TEMPERATURE:
        assert float(value.min()) >= 0
    elif spec.role is Role.SLOT:
        stored = value[value >= 0]
        assert (value >= -1).all()
        assert len(stored.unique()) == len(stored)


def test_edges_of_contracts_are_drawn() -> None:
    """Slots that are not stored; greedy rows, rows without top-k and without a nucleus; optional and strided."""
    seen: set[str] = set()
    for name in ("store_kvcache", "top_k_top_p_sample", "rms_norm", "flash_attn_decode"):
        for group in _groups(ops()[name], 6):
            for case in (case for pool in group.pools for case in pool):
                seen |= _edges(case.inputs)
    assert seen == {
        "slot -1",
        "temperature 0",
        "top_k 0",
        "top_p 1",
        "residual None",
        "strided",
        "one row",
        "NaN pages",
    }


EDGES = {"slot -1": "slot_mapping", "temperature 0": "temperature", "top_k 0": "top_k", "top_p 1": "top_p"}


def _edges(inputs: dict[str, object]) -> set[str]:
    tensors = {n: v for n, v in inputs.items() if isinstance(v, Tensor)}
    held = {edge: tensors[name] for edge, name in EDGES.items() if name in tensors}
    found = {edge for edge, tensor in held.items() if bool((tensor == float(edge.split()[1])).any())}
    found |= {"residual None"} if "residual" in inputs and inputs["residual"] is None else set()
    found |= {"strided"} if not all(t.is_contiguous() for t in tensors.values()) else set()
    found |= {"one row"} if "x" in tensors and len(tensors["x"]) == 1 else set()
    found |= {"NaN pages"} if "key_cache" in tensors and bool(tensors["key_cache"].isnan().any()) else set()
    return found


def test_two_seeds_share_no_values() -> None:
    one, two = (make_groups(ops()["rms_norm"], [], (torch.float32,), 2, CPU, generator(s))[0] for s in (1, 2))
    assert not torch.equal(one.params["weight"], two.params["weight"])
    values = [set(g.pools[0][0].inputs["x"].flatten().tolist()) for g in (one, two)]
    assert not values[0] & values[1]


@pytest.mark.parametrize("entry", list(ops().values()), ids=lambda e: e.name)
def test_tolerance_of_every_op_dtype_and_family_is_measured(entry: OpEntry) -> None:
    command = f"python -m fastkernels.harness.calibrate --device cpu --ops {entry.name}"
    known = measured(entry.name)
    for dtype in baseline_class(entry).spec.dtypes:
        missing = set(FAMILIES) - set(known.get(dtype, {}))
        assert not missing, f"{entry.name} in {dtype}: {sorted(missing)} not measured; run `{command}`."
        for family, outputs in known[dtype].items():
            for output, error in outputs.items():
                assert set(error) == {"element", "row", "bias", "max_abs", "all_rows"}
                assert all(0 <= value < math.inf for value in error.values()), (entry.name, dtype, family, output)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_every_compared_output_has_figures_of_its_own(entry: OpEntry) -> None:
    generator = torch.Generator().manual_seed(0)
    for group in make_groups(entry, [], (torch.bfloat16,), 1, CPU, generator):
        exact = expectation(group.exact, group.pools[0][0], CPU)
        floats = {e.name for e in exact.compared if e.compare is Compare.VALUES and e.value.is_floating_point()}
        assert floats <= set(measured(entry.name)["bfloat16"]["normal"]), entry.name


def test_deeper_cache_takes_the_deepest_that_was_measured() -> None:
    shallow, deepest, deeper = (
        tolerance_for("llama_model", torch.bfloat16, "normal", f"cache:{i}") for i in (0, 1, 31)
    )
    assert deeper == deepest
    assert shallow.row < deepest.row / 2


def test_measurements_name_their_place_and_no_op_that_is_gone() -> None:
    assert measured_ops() == set(ops()), "Measure new ops, remove old ones: python -m fastkernels.harness.calibrate."
    for op in ops():
        record = read_record(FOLDER / f"{op}.json")
        assert record["measurements"], op
        for measurement in record["measurements"]:
            assert {"created", "environment", "seed"} <= set(measurement)


def test_family_that_was_not_measured_takes_the_wider_of_the_ordinary_ones() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        captured = tolerance_for("linear", dtype, "captured", "y")
        families = [tolerance_for("linear", dtype, family, "y") for family in ("normal", "heavy_tailed")]
        assert captured.row == max(t.row for t in families)
        assert captured.element == max(t.element for t in families)
    unknown = tolerance_for("no_such_op", torch.bfloat16, "normal", "y")
    assert unknown.element == 0
    assert unknown.row == published()["row_floor"]["bfloat16"]
