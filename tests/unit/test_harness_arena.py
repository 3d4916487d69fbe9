"""Shared memory between judge and worker: layouts keep every value and guard bands show every write."""

from __future__ import annotations

import os
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastkernels.capture.case import Case
from fastkernels.capture.tensors import stored
from fastkernels.harness.arena import (
    ALIGNMENT,
    GUARD_BYTES,
    GUARD_VALUE,
    VECTOR_START,
    Arena,
    Layout,
    Slot,
    dtype_of,
    extent,
)
from fastkernels.harness.control import Bell, Word
from fastkernels.harness.mutation import check_inputs
from fastkernels.harness.pool import Pool
from fastkernels.harness.vary import PERIOD, draw_variation, vary
from fastkernels.tasks.baseline.L1.dense_attention import DenseAttention

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.bool)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any rank up to four, sizes from zero, rows padded or axes exchanged."""
    shape = draw(st.lists(st.integers(0, 7), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    values = torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 999))))
    form = draw(st.sampled_from(("dense", "padded", "transposed")))
    x = values.to(dtype)
    if form == "padded" and x.ndim:
        wide = torch.zeros((*x.shape[:-1], x.shape[-1] + 3), dtype=dtype)
        wide[..., : x.shape[-1]] = x
        return wide[..., : x.shape[-1]]
    return x.transpose(0, -1) if form == "transposed" and x.ndim > 1 else x


def _region(layout: Layout) -> Tensor:
    return torch.zeros(layout.num_bytes, dtype=torch.uint8)


@settings(max_examples=80, deadline=None)
@given(st.lists(tensors(), min_size=1, max_size=5))
def test_layout_gives_back_every_tensor(given_tensors: list[Tensor]) -> None:
    named = {f"in:{i}": t for i, t in enumerate(given_tensors)}
    layout = Layout.of(named)
    region = _region(layout)
    layout.write(region, named)
    for name, view in layout.views(region).items():
        assert view.dtype == named[name].dtype
        assert view.stride() == named[name].stride()
        assert torch.equal(view, named[name])


@settings(max_examples=60, deadline=None)
@given(st.lists(tensors(), min_size=1, max_size=5))
def test_layout_keeps_tensors_apart_between_guard_bands(given_tensors: list[Tensor]) -> None:
    layout = Layout.of({str(i): t for i, t in enumerate(given_tensors)})
    end = 0
    for slot in layout.slots:
        assert slot.offset % ALIGNMENT == 0
        assert slot.offset - end >= GUARD_BYTES
        end = slot.offset + slot.num_bytes
    assert layout.num_bytes - end >= GUARD_BYTES
    assert layout.num_bytes % ALIGNMENT == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(tensors(), min_size=1, max_size=4))
def test_layout_writes_values_alone_and_guards_everywhere_else(given_tensors: list[Tensor]) -> None:
    named = {str(i): t for i, t in enumerate(given_tensors)}
    layout = Layout.of(named)
    region = _region(layout)
    layout.write(region, named)
    covered = torch.zeros(layout.num_bytes, dtype=torch.bool)
    for slot, tensor in zip(layout.slots, given_tensors, strict=True):
        size = tensor.element_size()
        places = torch.zeros(slot.num_bytes // size if slot.num_bytes else 0, dtype=torch.bool)
        if places.numel():
            places.as_strided(slot.shape, slot.stride).fill_(True)
        covered[slot.offset : slot.offset + slot.num_bytes] = places.repeat_interleave(size)
    assert (region[~covered] == GUARD_VALUE).all()
    assert int(covered.sum()) == sum(t.numel() * t.element_size() for t in given_tensors)


def test_slot_survives_json() -> None:
    slot = Slot("in:x", 256, (3, 5), (8, 1), "bfloat16")
    assert Slot.from_json(slot.to_json()) == slot
    assert slot.num_bytes == 2 * (2 * 8 + 4 + 1)


def test_expanded_tensor_is_held_once_and_given_as_it_was() -> None:
    x = torch.randn(2, 1, 5).expand(2, 300, 5)
    layout = Layout.of({"in:x": x})
    assert layout.slots[0].num_bytes == x[:, 0].numel() * 4
    region = _region(layout)
    layout.write(region, {"in:x": x})
    view = layout.views(region)["in:x"]
    assert torch.equal(view, x)
    assert view.stride() == x.stride()
    layout.write(region, {"in:x": x.contiguous() + 1})
    assert torch.equal(view, x + 1)


def test_expanded_inputs_are_varied_alike_on_both_sides() -> None:
    """As a model masks: one mask for every head, one vector of ids for every picture."""
    attention = DenseAttention(num_heads=2, head_size=8)
    floats = [torch.randn(2, 5, 2, 8) for _ in range(2)]
    value, mask = torch.randn(2, 1, 2, 8).expand(2, 5, 2, 8), torch.ones(2, 1, 5, dtype=torch.bool).expand(2, 5, 5)
    inputs = {"query": floats[0], "key": floats[1], "value": value, "mask": mask}
    case = Case("dense_attention", {"num_heads": 2, "head_size": 8}, inputs, {}, torch.float32)
    pool = Pool(attention, [case], 1000, torch.device("cpu"))
    variation = draw_variation(torch.Generator().manual_seed(1))
    region = _region(pool.layout)
    pool.layout.write(region, pool.flat[0])
    for name, view in pool.layout.views(region).items():  # as a worker does on a GPU
        assert view.stride() == pool.flat[0][name].stride()
        if name in pool.rules:
            stored(view).copy_(vary(stored(view), pool.rules[name], variation, None))
        assert torch.equal(view, pool.values(0, variation)[name])
    assert not torch.equal(pool.values(0, variation)["in:value"], value)
    assert check_inputs(pool, region, pool.values(0, variation)) == {}


@pytest.mark.parametrize("name", ["Tensor", "no_such_dtype", "__class__", "load"])
def test_dtype_of_refuses_what_is_no_dtype(name: str) -> None:
    with pytest.raises(ValueError, match="not a torch dtype"):
        dtype_of(name)


def test_extent_counts_gaps_but_nothing_of_an_empty_tensor() -> None:
    assert extent((2, 3), (10, 1)) == 13
    assert extent((0, 3), (10, 1)) == 0
    assert extent((), ()) == 1


def test_arena_is_seen_through_its_descriptor() -> None:
    ours = Arena(5000)
    theirs = Arena(5000, os.dup(ours.fd))
    ours.region(17, 4).copy_(torch.tensor([1, 2, 3, 4], dtype=torch.uint8))
    assert theirs.region(17, 4).tolist() == [1, 2, 3, 4]
    Bell(ours.bell).write(Word.GO, 1 << 62)
    assert Bell(theirs.bell).read(Word.GO) == 1 << 62
    assert theirs.region(0, 17).tolist() == [0] * 17  # the bell lies outside the bytes
    ours.close()
    theirs.close()


def test_control_pages_hold_words_vector_and_shift_apart() -> None:
    ours = Arena(100)
    theirs = Arena(100, os.dup(ours.fd))
    ours.vector.fill_(1.5)
    ours.shift.fill_(1 << 40)
    ours.region(0, 100).fill_(7)
    assert theirs.vector.tolist() == [1.5] * PERIOD
    assert theirs.shift.tolist() == [1 << 40]
    assert [Bell(theirs.bell).read(word) for word in Word] == [0] * len(Word)
    ours.close()
    theirs.close()


def test_arena_refuses_regions_outside() -> None:
    arena = Arena(1000)
    for start, size in ((-1, 4), (997, 4), (0, 1001)):
        with pytest.raises(ValueError, match="outside an arena of 1000 bytes"):
            arena.region(start, size)
    assert arena.region(996, 4).numel() == 4
    arena.close()


def test_arena_close_frees_its_descriptor_once() -> None:
    arena = Arena(100)
    fd = arena.fd
    arena.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    arena.close()


def test_bell_words_lie_on_cache_lines_of_their_own() -> None:
    assert all(word % 8 == 0 for word in Word)
    assert len({int(word) for word in Word}) == len(Word)
    assert max(Word) * 8 + 8 <= VECTOR_START


def test_bell_wait_returns_on_the_value_and_gives_up_when_told() -> None:
    arena = Arena(8)
    bell = Bell(arena.bell)
    threading.Timer(0.05, bell.write, (Word.DONE, 7)).start()
    bell.wait(Word.DONE, 7)
    looks = 0

    def give_up() -> None:
        nonlocal looks
        looks += 1
        if looks > 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        bell.wait(Word.READY, 1, give_up)
    assert bell.wait_until(Word.DONE, 7, 0)
    started = time.perf_counter_ns()
    assert not bell.wait_until(Word.READY, 1, started + 2_000_000)
    assert time.perf_counter_ns() >= started + 2_000_000
    arena.close()
