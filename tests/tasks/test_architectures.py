"""Every registered architecture against its library of record: checkpoints, answers, and each level below."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from torch import Tensor

from fastkernels.capture.replay import replay
from fastkernels.capture.run import capture
from fastkernels.engine.llm import LLM
from fastkernels.engine.pipeline import Pipeline
from fastkernels.errors import EnvironmentProblem, UnsupportedError
from fastkernels.oracles.oracle import TOLERANCE, Answer, oracle_of
from fastkernels.oracles.side_by_side import SideBySide, relative_error
from fastkernels.registry import ARCHITECTURES, Architecture, ops, ops_of_architecture
from fastkernels.workloads import Workload

LIMIT = TOLERANCE


def _variants() -> Iterator[Any]:
    for architecture in ARCHITECTURES:
        try:
            oracle = oracle_of(architecture)
        except EnvironmentProblem as error:
            yield pytest.param((architecture, None, ""), id=architecture.name, marks=pytest.mark.skip(str(error)))
            continue
        for variant in oracle.tiny():
            yield pytest.param((architecture, oracle, variant), id=f"{architecture.name}-{variant}")


@pytest.fixture(scope="module", params=_variants())
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SideBySide:
    architecture, oracle, variant = request.param
    return SideBySide(architecture, oracle, variant, tmp_path_factory.mktemp(f"{architecture.name}-{variant}"))


def assert_equal(given: Mapping[str, Tensor], expected: Answer, what: str) -> None:
    assert expected, "The oracle's answer names nothing to compare."
    assert set(expected) <= set(given), f"{what}: {sorted(given)} lacks some of {sorted(expected)}"
    for name, tensor in expected.items():
        assert relative_error(given[name], tensor) <= LIMIT, f"{what}: {name}"


def test_answers_equal_the_oracle_together_and_alone(pair: SideBySide) -> None:
    expected = pair.expected()
    together = pair.answers(pair.requests)
    alone = [pair.answers([request])[0] for request in pair.requests[:2]]
    for i, (given, wanted) in enumerate(zip(together, expected, strict=True)):
        assert_equal(given, wanted, f"request {i} of all")
    for i, (given, wanted) in enumerate(zip(alone, expected, strict=False)):
        assert_equal(given, wanted, f"request {i} alone")


@pytest.mark.parametrize("options", [{"max_num_batched_tokens": 7}, {"page_size": 4, "num_pages": 80}], ids=str)
def test_tokens_do_not_depend_on_chunks_or_pages(pair: SideBySide, options: dict[str, int]) -> None:
    if not pair.makes_tokens:
        pytest.skip("It makes no tokens.")
    for i, (given, wanted) in enumerate(zip(pair.answers(pair.requests, **options), pair.expected(), strict=True)):
        assert_equal(given, wanted, f"request {i}")


def test_every_level_equals_the_oracle(pair: SideBySide) -> None:
    assert pair.oracle.levels, "The oracle names no level below the answers."
    for found in pair.levels():
        assert relative_error(found.given, found.wanted) <= LIMIT, f"{found.ours} against {found.theirs}"


def test_logits_equal_the_oracle(pair: SideBySide) -> None:
    if not pair.makes_tokens:
        pytest.skip("It makes no tokens.")
    for i, (given, wanted) in enumerate(pair.logits()):
        assert relative_error(given, wanted) <= LIMIT, f"logits of request {i}"


def test_a_checkpoint_of_another_kind_is_refused(pair: SideBySide) -> None:
    """One that makes embeddings is LLM's too, till it is asked for tokens."""
    if pair.makes_tokens:
        with pytest.raises(UnsupportedError, match="use LLM"):
            Pipeline(pair.folder, device="cpu")
        return
    with pytest.raises(UnsupportedError, match=r"use Pipeline|use LLM\.embed"):
        LLM(pair.folder, device="cpu").generate("x")


def test_every_architecture_names_an_oracle_and_what_was_published() -> None:
    for architecture in ARCHITECTURES:
        assert architecture.oracle, architecture.name
        assert {"reference", "dtype", "tasks", "peer", "speed_ratio", "source"} <= set(architecture.published)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_preset_is_captured_and_replays_bit_for_bit(architecture: Architecture) -> None:
    preset = f"tiny-{architecture.name}"
    workload = Workload("examples", num_requests=3, input_len=20, output_len=3)
    cases, calls, results = capture(preset, workload, device="cpu", max_num_batched_tokens=24)
    assert len(results) == 3
    called = {op for op, _ in calls}
    idle = {e.name for e in ops_of_architecture(architecture.name)} - called - set(architecture.engine_ops)
    assert not {op for op in idle if ops()[op].level > 2}, "Layers of the architecture that its own tiny model skips."
    wrong = [f"{c.op} {c.phase} {c.shapes()}" for c in cases if replay(c, "cpu").digest != c.outputs_digest]
    assert wrong == []
