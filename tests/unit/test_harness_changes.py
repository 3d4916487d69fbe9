"""What a call writes to its arguments is looked at when it claims to be done."""

from __future__ import annotations

import textwrap

import pytest
import torch
from judging import Bench, bench

from fastkernels.harness.arena import Layout
from fastkernels.harness.changes import MOST_PLACES, Changes
from fastkernels.harness.verdict import Rejection, Verdict

__all__ = ["bench"]

STORE = """
import sys, threading, time
from torch import nn

def store(key, value, key_cache, value_cache, slot_mapping):
    stored = slot_mapping >= 0
    slots = slot_mapping[stored]
    page, offset = slots // key_cache.shape[1], slots % key_cache.shape[1]
    key_cache[page, offset] = key[stored]
    value_cache[page, offset] = value[stored]

class StoreKVCache(nn.Module):
    def forward(self, key, value, key_cache, value_cache, slot_mapping):
        arguments = key, value, key_cache, value_cache, slot_mapping
{body}
"""


def laid_out(given: dict[str, torch.Tensor]) -> tuple[Layout, torch.Tensor]:
    layout = Layout.of(given)
    region = torch.zeros(layout.num_bytes, dtype=torch.uint8)
    layout.write(region, given)
    return layout, region


def test_only_what_the_definition_changes_is_looked_at() -> None:
    cache = torch.randn(6, 4, 8).transpose(0, 1)
    cache[1] = torch.nan
    after = cache.double().clone()
    after[2, 3, 5], after[0, 0, 0] = 9.0, torch.nan
    given = {"in:x": torch.randn(3), "cache:0": cache}
    layout, region = laid_out(given)
    changes = Changes.of(layout, given, {"cache:0": after})
    seen = changes.seen(region)
    wanted = torch.stack([cache[2, 3, 5], cache[0, 0, 0]]).view(torch.int32)
    assert sorted(seen[0].tolist()) == sorted(wanted.tolist())
    changes.check(region, seen)
    view = layout.views(region)["cache:0"]
    view[3, 3, 3] += 1  # no place of theirs
    changes.check(region, seen)
    view[2, 3, 5] = 9.0
    with pytest.raises(Rejection, match="still written to") as caught:
        changes.check(region, seen)
    assert caught.value.verdict is Verdict.CHEATING


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.uint8])
def test_of_many_changes_some_are_drawn(dtype: torch.dtype) -> None:
    given = {"in:state": torch.zeros(100, 100, dtype=dtype)}
    layout, region = laid_out(given)
    drawn = [Changes.of(layout, given, {"in:state": torch.ones(100, 100)}) for _ in range(2)]
    first, second = (one.places["in:state"] for one in drawn)
    assert len(first) == len(set(first.tolist())) == MOST_PLACES
    assert not torch.equal(first.sort().values, second.sort().values)
    assert drawn[0].seen(region)[0].shape == (MOST_PLACES,)


def test_call_that_changes_nothing_has_no_places() -> None:
    given = {"cache:0": torch.full((4, 4), torch.nan)}
    layout, region = laid_out(given)
    changes = Changes.of(layout, given, {"cache:0": given["cache:0"].double()})
    changes.check(region, changes.seen(region))
    assert changes.seen(region)[0].numel() == 0


def judged(bench: Bench, body: str) -> tuple[str, str]:
    record = bench.judge("store_kvcache", STORE.replace("{body}", textwrap.indent(textwrap.dedent(body), " " * 8)))
    return record.verdict, record.message


def test_store_that_is_done_when_it_says_so_passes(bench: Bench) -> None:
    verdict, message = judged(bench, "store(*arguments)")
    assert verdict == Verdict.PASSED, message


def test_sealed_call_shows_what_was_stored_before_its_claim(bench: Bench) -> None:
    """After DONE of sealed calls alone; of others the judge itself sees it."""
    body = """
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != "one_call":
        frame = frame.f_back
    worker = frame.f_locals["self"]
    if not worker.bell.read(112):
        return store(*arguments)
    publish = type(worker.publisher).publish

    def late(answer):
        publish(worker.publisher, answer)
        store(*arguments)  # the judge has not been told yet that the call is done
        del worker.publisher.publish

    worker.publisher.publish = late
    """
    verdict, message = judged(bench, body)
    assert verdict == Verdict.INCORRECT_NUMERICAL, message
