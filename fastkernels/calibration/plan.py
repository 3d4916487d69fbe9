"""What each family is calibrated on: the models whose own noise counts, and those that are damaged, how and how far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastkernels.calibration.damage import (
    Damage,
    DroppedLayers,
    RandomFrequencies,
    RandomRows,
    ShuffledInput,
    UntrainedWeights,
    ValueNoise,
    WeightNoise,
)
from fastkernels.engine.model_source import presets, shipped_checkpoints
from fastkernels.errors import CheckpointError, UnknownNameError
from fastkernels.registry import ARCHITECTURES
from fastkernels.scoring.items import Family

ALL = "all"
SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)
SMALL_SIGMAS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
LAYER_SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.65, 0.8, 1.0)


@dataclass(frozen=True)
class Trouble:
    """A damage and its severities, rising."""

    damage: Damage
    severities: tuple[float, ...]


@dataclass(frozen=True)
class DamagedModel:
    """num_requests: so many answers are compared at each severity."""

    name: str
    troubles: tuple[Trouble, ...]
    num_requests: int = 16


_LANGUAGE = (
    Trouble(RandomRows("random tokens", scale=1.0), SHARES),
    Trouble(WeightNoise(), SIGMAS),
    Trouble(UntrainedWeights("untrained embedding and head", r"embed|lm_head"), SHARES),
)
_ROTARY = Trouble(RandomFrequencies(), (0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0))
_LAYERS = r"layers\.(\d+)\..*(o_proj|down_proj|out_proj|w2)\."
_TRANSFORMER = (_ROTARY, Trouble(DroppedLayers(_LAYERS), LAYER_SHARES))

DAMAGED: Mapping[Family, tuple[DamagedModel, ...]] = {
    Family.LANGUAGE: (
        DamagedModel("trained-llama", (*_LANGUAGE, *_TRANSFORMER)),
        DamagedModel(
            "trained-mixtral",
            (*_LANGUAGE, *_TRANSFORMER, Trouble(RandomRows("random routing", r"\.gate$", scale=4.0), SHARES)),
        ),
        DamagedModel("trained-mamba2", (*_LANGUAGE, Trouble(DroppedLayers(_LAYERS), LAYER_SHARES))),
    ),
    Family.SPEECH: (
        DamagedModel(
            "tiny-whisper",
            (
                Trouble(RandomRows("random tokens", scale=1.0), SHARES),
                Trouble(WeightNoise(), SMALL_SIGMAS),
                Trouble(ShuffledInput("shuffled sound", r"encoder\.conv1$"), SHARES),
            ),
        ),
    ),
    Family.EMBEDDING: (
        DamagedModel(
            "tiny-bge_m3",
            (
                Trouble(WeightNoise(), SIGMAS),
                Trouble(UntrainedWeights("untrained word embeddings", r"word_embeddings"), SHARES),
            ),
            64,
        ),
        DamagedModel(
            "tiny-dinov3",
            (Trouble(WeightNoise(), SIGMAS), Trouble(ShuffledInput("shuffled pixels", r"^patch_embeddings$"), SHARES)),
            64,
        ),
        DamagedModel(
            "tiny-vjepa2",
            (
                Trouble(WeightNoise(), SIGMAS),
                Trouble(ShuffledInput("shuffled pixels", r"embeddings\.patch_embeddings$"), SHARES),
            ),
            32,
        ),
    ),
    Family.CLASSIFICATION: (
        DamagedModel(
            "trained-digits",
            (
                Trouble(UntrainedWeights("untrained head", r"^classifier\."), SHARES),
                Trouble(WeightNoise(), SIGMAS),
                Trouble(ShuffledInput("shuffled pixels", r"embeddings\.patch_embeddings$"), SHARES),
            ),
            360,
        ),
    ),
    Family.DETECTION: (
        DamagedModel(
            "tiny-yolov10",
            (
                Trouble(WeightNoise(), SIGMAS),
                Trouble(ValueNoise("noise on boxes", r"^dfl\.\d"), (*SIGMAS[3:], 2.0, 4.0)),
                Trouble(UntrainedWeights("untrained classes' head", r"^head\.cv3"), SHARES),
            ),
        ),
    ),
    Family.RANKING: (
        DamagedModel(
            "tiny-dlrmv2",
            (
                Trouble(WeightNoise(), SIGMAS),
                Trouble(UntrainedWeights("untrained head", r"^over_arch"), SHARES),
                Trouble(UntrainedWeights("untrained embeddings", r"embedding_bag"), SHARES),
            ),
            256,
        ),
        DamagedModel("tiny-lightgcn", (Trouble(WeightNoise(), (*SIGMAS, 2.0, 4.0)),), 64),
    ),
    Family.IMAGE: (
        DamagedModel(
            "tiny-sdxl",
            (
                Trouble(WeightNoise(pattern=r"^unet"), SMALL_SIGMAS),
                Trouble(UntrainedWeights("untrained decoder", r"^vae"), SHARES),
                Trouble(UntrainedWeights("untrained denoiser", r"^unet"), SHARES),
            ),
            6,
        ),
    ),
    Family.TRAJECTORY: (
        DamagedModel(
            "tiny-pi0",
            (
                Trouble(WeightNoise(), SMALL_SIGMAS),
                Trouble(UntrainedWeights("untrained head", r"^action_out_proj"), SHARES),
                Trouble(ShuffledInput("shuffled pixels", r"patch_embedding$"), SHARES),
            ),
            24,
        ),
    ),
    Family.RENDERING: (
        DamagedModel(
            "tiny-gaussian_splatting",
            (
                Trouble(ValueNoise("noise on places", r"^$", 0), SMALL_SIGMAS),
                Trouble(ValueNoise("noise on colours", r"^$", 4), SIGMAS),
                Trouble(ShuffledInput("shuffled colours", r"^$", 4), SHARES),
            ),
            12,
        ),
    ),
}
"""Untrained weights of a model that has random ones are others: it forgets what its answers are compared by."""

_NUM_NOISE = {
    **dict.fromkeys((Family.LANGUAGE, Family.DETECTION, Family.RENDERING), 8),
    Family.SPEECH: 64,
    Family.IMAGE: 4,
    Family.RANKING: 256,
    Family.CLASSIFICATION: 64,
}
_NUM_NOISE_USUALLY = 16


def families() -> list[str]:
    """Those that a registered architecture is of."""
    return sorted({architecture.family for architecture in ARCHITECTURES})


def chosen_families(name: str) -> list[Family]:
    """One by name, or all. Errors: UnknownNameError suggests the nearest."""
    if name != ALL and name not in families():
        raise UnknownNameError("family to calibrate", name, [*families(), ALL])
    return [Family(family) for family in (families() if name == ALL else [name])]


def noise_models(family: Family) -> dict[str, int]:
    """The tiny preset of every architecture of the family and the trained models that are damaged, with how many
    requests each is sent."""
    tiny = [f"tiny-{a.name}" for a in ARCHITECTURES if a.family == family]
    names = [name for name in tiny if name in presets()]
    names += [model.name for model in DAMAGED[family] if model.name not in names]
    return dict.fromkeys(names, _NUM_NOISE.get(family, _NUM_NOISE_USUALLY))


def require_checkpoints(chosen: Sequence[Family]) -> None:
    """Errors: CheckpointError names those that are missing and what makes them."""
    known = {*presets(), *shipped_checkpoints()}
    missing = [model.name for family in chosen for model in DAMAGED[family] if model.name not in known]
    if missing:
        raise CheckpointError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not among the shipped checkpoints "
            f"({', '.join(shipped_checkpoints()) or 'none'}). Train: {'; '.join(map(_training, missing))}."
        )


def _training(name: str) -> str:
    script = "train_digits.py" if name == "trained-digits" else f"train_tiny.py --model {name}"
    return f"python examples/{script} --out fastkernels/checkpoints/{name}"
