"""Pictures and videos among the requests of a scenario, and what a candidate's vision tower does to its score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from eval_sets import FASTER, QWEN2_VL, THRESHOLDS, items_of, plan_for

from fastkernels.bench.eval.answers import forced
from fastkernels.bench.eval.passes import Passes
from fastkernels.bench.eval.processes import Nursery
from fastkernels.bench.eval.scenarios import WorkloadPart
from fastkernels.bench.eval.worker import TokenEngine
from fastkernels.registry import ops_of_architecture

PART = WorkloadPart("balanced", 8, 0.05)
SCENARIO = replace(QWEN2_VL, throughput=(PART,))


def requests(seed: int = 0, number: int = 0) -> list[Any]:
    return Passes(SCENARIO, seed).of(PART, "throughput", number).requests


def shapes(made: list[Any]) -> list[list[tuple[str, tuple[int, ...]]]]:
    given = [request["prompt"].get("multi_modal_data", {}) for request in made]
    return [[(modality, item.shape) for modality, items in one.items() for item in items] for one in given]


def test_a_pass_mixes_one_picture_two_a_video_and_text_alone() -> None:
    made = requests()
    found = shapes(made)
    assert [[modality for modality, _ in one] for one in found] == [["image"], ["image"] * 2, ["video"], []] * 2
    sizes = [shape[-3:-1] for one in found for _, shape in one]
    assert all(side % 2 == 1 for size in sizes for side in size)
    assert len(set(sizes)) == len(sizes)
    assert {request["output_len"] for request in made} == {6}  # the workload's 128 times 0.05


def test_media_are_those_of_the_seed_and_others_in_each_pass() -> None:
    first, again, other, later = requests(), requests(), requests(seed=1), requests(number=1)
    for one, same in zip(first, again, strict=True):
        np.testing.assert_equal(one, same)
    assert shapes(first) != shapes(other)
    assert shapes(first) != shapes(later)


def test_an_answer_is_read_behind_the_same_pictures() -> None:
    """Without them, or with others, the same tokens are less likely: forcing reads what was sent."""
    made = requests()[:2]
    order = {"model": QWEN2_VL.model, "candidates": (), "dtype": "float32", "device": "cpu"}
    engine = TokenEngine({**order, "tensor_parallel_size": 1, "enable_expert_parallel": False})
    suppressed = Passes(SCENARIO, 0).suppressed
    said = engine.run({"requests": made, "suppressed": suppressed, "wants_logprobs": True})

    def read(prompts: list[Any]) -> list[Any]:
        whole = [forced(prompt, tokens) for prompt, tokens in zip(prompts, said["token_ids"], strict=True)]
        found: list[Any] = engine.score({"requests": whole, "suppressed": suppressed})
        return found

    for one, tokens, logprobs in zip(read([r["prompt"] for r in made]), *said.values(), strict=True):
        assert one["reference_token_ids"].tolist() == tokens.tolist()
        np.testing.assert_allclose(one["logprobs"], logprobs, atol=1e-4)
    dark = [
        {**r["prompt"], "multi_modal_data": {"image": [0 * i for i in r["prompt"]["multi_modal_data"]["image"]]}}
        for r in made
    ]
    for one, logprobs in zip(read(dark), said["logprobs"], strict=True):
        assert np.abs(one["logprobs"] - logprobs).max() > 1e-3


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as running:
        yield running


@pytest.mark.slow
def test_a_set_that_says_a_placeholder_is_invalid_alone(nursery: Nursery) -> None:
    """The reference cannot read its answer, which is no fault of the baseline's or of the sets beside it."""
    items = items_of(nursery, plan_for(QWEN2_VL, "says_media", FASTER, num_passes=1, num_restarts=1))
    item = items["says_media"]
    assert (item["outcome"], item["reason"]) == ("INVALID", "WRONG_SHAPE")
    assert "holds token 514, which the request suppresses" in item["message"]
    assert items["faster"]["outcome"] == "MEASURED"


@pytest.mark.slow
def test_a_damaged_vision_tower_is_found_and_the_definitions_have_no_discrepancy(nursery: Nursery) -> None:
    items = items_of(nursery, plan_for(QWEN2_VL, "blind", "reference", num_passes=1))
    blind, sound = items["blind"], items["reference"]
    assert max(blind["discrepancies"]) > THRESHOLDS.good
    assert blind["subset"]["at_fault"] == {"vision_patch_merger": "INACCURATE"}
    assert set(sound["discrepancies"]) == {0.0}
    called = {line["op"] for line in sound["replacements"] if line["num_calls"]}
    tower = {op.name for op in ops_of_architecture("qwen2_vl") if "vision" in op.name}
    assert len(tower) > 5
    assert tower <= called
