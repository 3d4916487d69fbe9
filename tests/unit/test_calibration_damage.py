"""Damage is what it says and leaves nothing behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastkernels.calibration.damage import (
    Damage,
    DroppedLayers,
    RandomFrequencies,
    RandomRows,
    ShuffledInput,
    UntrainedWeights,
    ValueNoise,
    WeightNoise,
    damaged,
)
from fastkernels.calibration.subject import Answers, Subject


@pytest.fixture(scope="module")
def ranker() -> Subject:
    return Subject("tiny-dlrmv2", "float32", 16)


def equal(first: Answers, second: Answers) -> bool:
    return all(np.array_equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a)


DAMAGES: list[tuple[str, Damage]] = [
    ("tiny-mixtral", WeightNoise()),
    ("tiny-mixtral", UntrainedWeights("untrained head", r"lm_head")),
    ("tiny-mixtral", DroppedLayers(r"layers\.(\d+)\..*(o_proj|w2)\.")),
    ("tiny-mixtral", RandomFrequencies()),
    ("tiny-mixtral", RandomRows("random tokens", scale=1.0)),
    ("tiny-mixtral", RandomRows("random routing", r"\.gate$", scale=4.0)),
    ("tiny-dlrmv2", ShuffledInput("shuffled numbers", r"dense_arch$")),
    ("tiny-dlrmv2", ValueNoise("noise on numbers", r"dense_arch$", 0)),
    ("tiny-dlrmv2", ValueNoise("noise on vectors", r"dense_arch$")),
]


@pytest.mark.parametrize(("model", "damage"), DAMAGES, ids=lambda value: getattr(value, "name", value))
def test_damage_changes_answers_by_seed_alone_and_is_undone_exactly(
    model: str, damage: Damage, mixtral: Subject, ranker: Subject
) -> None:
    whole = mixtral if model == "tiny-mixtral" else ranker
    before = {name: tensor.clone() for name, tensor in whole.model.state_dict(keep_vars=True).items()}
    tables = [table.clone() for table in whole.model.buffers()]
    answers = []
    for seed, severity in ((0, 1.0), (0, 1.0), (1, 1.0), (0, 0.0)):
        with damaged(whole.model, damage, severity, seed):
            answers.append(whole.answers())
    assert equal(answers[0], answers[1])
    assert not equal(answers[0], whole.own)
    if not isinstance(damage, DroppedLayers):
        assert not equal(answers[0], answers[2])
    assert equal(answers[3], whole.own)
    assert all(torch.equal(before[name], tensor) for name, tensor in whole.model.state_dict().items())
    assert all(torch.equal(*pair) for pair in zip(tables, whole.model.buffers(), strict=True))
    assert "compute_logits" not in vars(whole.model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in whole.model.modules())
    assert equal(whole.answers(), whole.own)


def test_damage_is_undone_when_the_model_breaks(ranker: Subject) -> None:
    weight = next(ranker.model.parameters())
    before = weight.detach().clone()

    def broken() -> None:
        with damaged(ranker.model, WeightNoise(), 0.5, 0):
            assert not torch.equal(weight, before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert torch.equal(weight, before)


def test_noise_and_untrained_weights_have_the_size_they_say(ranker: Subject) -> None:
    weight = ranker.model.get_parameter("embedding_bag.weight")
    before = weight.detach().clone()
    size = float(before.pow(2).mean().sqrt())
    with damaged(ranker.model, WeightNoise(pattern="embedding_bag"), 0.25, 3):
        assert float((weight - before).pow(2).mean().sqrt()) == pytest.approx(0.25 * size, rel=0.15)
        assert float((weight - before).abs().max()) > 0
    with damaged(ranker.model, UntrainedWeights("untrained", "embedding_bag"), 1.0, 3):
        assert float(weight.pow(2).mean().sqrt()) == pytest.approx(size, rel=0.15)
        assert abs(float(torch.corrcoef(torch.stack([weight.flatten(), before.flatten()]))[0, 1])) < 0.2


def test_layers_are_dropped_from_the_last_on(mixtral: Subject) -> None:
    weights = [mixtral.model.get_parameter(f"model.layers.{i}.self_attn.o_proj.linear.weight") for i in range(2)]
    before = [weight.detach().clone() for weight in weights]
    with damaged(mixtral.model, DroppedLayers(r"layers\.(\d+)\..*(o_proj|w2)\."), 0.75, 0):
        assert not weights[1].any()
        assert torch.equal(weights[0], before[0] * 0.5)


def test_frequencies_rows_and_places_are_hit_in_the_share_that_is_said(mixtral: Subject) -> None:
    name, table = next((n, b) for n, b in mixtral.model.named_buffers() if n.endswith("cos_sin_cache"))
    before = table.clone()
    with damaged(mixtral.model, RandomFrequencies(), 0.5, 0):
        is_changed = (table != before).any(0)
    half = table.shape[1] // 2
    assert int(is_changed.sum()) == half, name
    assert torch.equal(is_changed[:half], is_changed[half:])
    rows = torch.ones(2000, mixtral.model.get_parameter("lm_head.linear.weight").shape[1])
    whole = mixtral.model.compute_logits(rows)  # type: ignore[operator]
    with damaged(mixtral.model, RandomRows("random tokens", scale=1.0), 0.2, 0):
        spoiled = mixtral.model.compute_logits(rows)  # type: ignore[operator]
    assert float((spoiled != whole).any(1).float().mean()) == pytest.approx(0.2, abs=0.03)
    layer = torch.nn.Sequential(torch.nn.Identity())
    x = torch.arange(200.0).view(2, 100)
    with damaged(layer, ShuffledInput("shuffled", r"^0$"), 0.3, 0):
        y = layer(x)
    assert torch.equal(y.sort(dim=1).values, x)
    assert 20 <= int((y != x)[0].sum()) <= 30


def test_a_damage_that_meets_nothing_is_refused(ranker: Subject) -> None:
    for damage in (WeightNoise(pattern="nowhere"), RandomFrequencies(), RandomRows("r", "nowhere")):
        with pytest.raises(ValueError, match="nothing would be damaged"), damaged(ranker.model, damage, 1.0, 0):
            pass
