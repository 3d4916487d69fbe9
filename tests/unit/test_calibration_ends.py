"""The ends of the scales: right and wrong answers of every family under the shipped thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from fastkernels.bench.eval.passes import Passes
from fastkernels.bench.eval.scenario_file import find_scenario_set
from fastkernels.calibration import plan
from fastkernels.calibration.bounds import ONE_OF_FIVE, least_difference, random_answers
from fastkernels.calibration.subject import NUM_PLACES, Answers, Subject
from fastkernels.scoring.discrepancy import compare
from fastkernels.scoring.items import Family, Item, Outcome, Thresholds
from fastkernels.scoring.macroeval import item_correctness
from fastkernels.scoring.manifest import load_manifest

FAMILIES = [Family(name) for name in plan.families()]
ROOT = Path(__file__).resolve().parents[2]


def shipped(family: Family, dtype: str = "float32") -> Thresholds:
    return load_manifest().thresholds(family, dtype)


def right_answers(family: Family) -> tuple[tuple[str, ...], Answers]:
    """Names and answers of sizes as published models have them."""
    random = np.random.default_rng(5)
    numbers: dict[Family, Callable[[], dict[str, np.ndarray]]] = {
        Family.SPEECH: lambda: {"token_ids": random.integers(0, 500, 64)},
        Family.EMBEDDING: lambda: {"v": random.standard_normal(256)},
        Family.CLASSIFICATION: lambda: {"v": random.standard_normal(1000)},
        Family.DETECTION: lambda: {
            "boxes": np.tile([10.0, 20.0, 90.0, 80.0], (20, 1)) + random.uniform(0, 300, (20, 1)),
            "scores": random.random(20),
            "labels": random.integers(0, 80, 20),
        },
        Family.RANKING: lambda: {"v": random.permutation(200)[:20]},
        Family.IMAGE: lambda: {"v": random.random((3, 32, 32))},
        Family.TRAJECTORY: lambda: {"v": random.standard_normal((10, 7))},
        Family.RENDERING: lambda: {"v": random.random((40, 40, 3))},
    }
    names = ("boxes", "scores", "labels") if family is Family.DETECTION else ("v",)
    return names, [numbers[family]() for _ in range(6)]


def correctness(family: Family, values: Sequence[float]) -> float:
    return item_correctness(Item("i", family, Outcome.MEASURED, shipped(family), tuple(values)))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f is not Family.LANGUAGE])
def test_answers_at_random_are_unusable_and_the_reference_is_right(family: Family) -> None:
    names, answers = right_answers(family)
    num_choices = {Family.RANKING: 200, Family.SPEECH: 500}.get(family, 80)
    drawn = random_answers(family, answers, num_choices, seed=3)
    assert correctness(family, compare(family, names, answers, drawn).values) == 0
    assert correctness(family, compare(family, names, answers, answers).values) == 1


def test_random_tokens_are_unusable_and_a_language_model_itself_is_right(mixtral: Subject) -> None:
    drawn = random_answers(Family.LANGUAGE, mixtral.own, 512)
    assert correctness(Family.LANGUAGE, mixtral.compare(drawn).values) == 0
    assert correctness(Family.LANGUAGE, mixtral.compare(mixtral.answers()).values) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_least_difference_of_a_family_is_good(family: Family) -> None:
    names, answers = ((), []) if family is Family.LANGUAGE else right_answers(family)
    least = least_difference(family, names, answers, "float32")
    assert least == {Family.CLASSIFICATION: ONE_OF_FIVE, Family.LANGUAGE: 1 / 64, Family.SPEECH: 1 / 64}.get(
        family, least
    )
    assert 0 < least < shipped(family).bad / 2


def test_how_many_tokens_may_differ_is_as_the_documentation_says() -> None:
    """`good` is a share: of a short answer it allows none, of a long one several."""
    text = " ".join((ROOT / "docs" / "scoring.md").read_text().split())
    (scenario, *_) = find_scenario_set("tiny").scenarios
    passes = Passes(scenario, 1)
    (short,) = {r["output_len"] for part, kind in passes.parts() for r in passes.of(part, kind, 0).requests}
    assert f"one of {short} (the scenarios of `tiny`) has D = {1 / short:.3f} and C = " in text
    assert f"C = {correctness(Family.LANGUAGE, [1 / short]):.3f}, and its item is not accurate" in text
    allowed = {
        (dtype, length): sum(k / length <= shipped(Family.LANGUAGE, dtype).good for k in range(1, length))
        for dtype in ("float32", "bfloat16", "float16")
        for length in (short, 512)
    }
    assert allowed["float32", short] == 0
    assert f"Of 512, {allowed['float32', 512]} may differ" in text
    of_half = [allowed[dtype, length] for dtype in ("bfloat16", "float16") for length in (short, 512)]
    assert "it is {} of 13 and {} of 512, in float16 {} and {}".format(*of_half) in text
    assert shipped(Family.LANGUAGE).good == 1 / NUM_PLACES


def test_random_answers_have_the_form_of_the_right_ones() -> None:
    for family in FAMILIES:
        if family is Family.LANGUAGE:
            continue
        _, answers = right_answers(family)
        for expected, drawn in zip(answers, random_answers(family, answers, 200), strict=True):
            assert {n: (a.shape, a.dtype) for n, a in expected.items()} == {
                n: (a.shape, a.dtype) for n, a in drawn.items()
            }
