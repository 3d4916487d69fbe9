"""A model against itself: how far its own answers stray with the order of its sums, its batches and its dtype."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from fastkernels.calibration.bounds import least_difference
from fastkernels.calibration.definitions import Definitions, run_definitions
from fastkernels.calibration.reorder import OtherOrder
from fastkernels.calibration.subject import Answers, Composition, Subject, copy_weights
from fastkernels.errors import UnsupportedError
from fastkernels.scoring.items import Family

DTYPES = ("float32", "bfloat16", "float16")
VARIANTS: Mapping[str, str] = {
    "again": "the same once more; of language, its answers read as a prompt",
    "alone": "each request by itself; of tokens, the first four",
    "other batches": "three at once and from the last on; of tokens, prompts in chunks of 32",
    "threads": "sums over two threads",
    "other sums": "every matrix product and convolution as two halves over interleaved terms",
    "definitions": "every op's definition for its production path",
    "float32 arithmetic": "the same rounded weights, all arithmetic in float32",
}

_ALONE = Composition(num_together=1)
_MOST_ALONE = 4
"""Of a model that makes tokens: one request after another takes its time."""

_OTHER = Composition(num_together=3, is_reversed=True)
_CHUNKED = Composition(num_together=64, chunk_tokens=32, is_reversed=True)


@dataclass(frozen=True)
class NoiseSample:
    """values: D of each request. floor: what the family's least difference comes to with these answers."""

    model: str
    dtype: str
    variant: str
    values: tuple[float, ...]
    figures: Mapping[str, float]
    floor: float

    @property
    def largest(self) -> float:
        return max(self.values)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "dtype": self.dtype,
            "variant": self.variant,
            "values": [rounded(value) for value in self.values],
            "figures": {name: rounded(value) for name, value in self.figures.items()},
            "floor": rounded(self.floor),
        }


@contextmanager
def threads(num: int) -> Iterator[None]:
    """Sums are split over so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def noise_of_models(
    models: Mapping[Family, Mapping[str, int]], seed: int
) -> dict[Family, tuple[list[NoiseSample], dict[str, str]]]:
    """By family the samples of its models in every dtype, and why a model cannot run in one.

    models: how many requests each is sent. Errors: those of the models; EnvironmentProblem without definitions.
    """
    definitions = run_definitions({name: num for some in models.values() for name, num in some.items()}, DTYPES, seed)
    found: dict[Family, tuple[list[NoiseSample], dict[str, str]]] = {}
    for family, some in models.items():
        samples, cannot_run = found[family] = ([], {})
        for (name, num), dtype in product(some.items(), DTYPES):
            try:
                samples += measure_noise(name, dtype, num, seed, definitions)
            except UnsupportedError as error:
                cannot_run[f"{name}, {dtype}"] = str(error)
    return found


def measure_noise(name: str, dtype: str, num: int, seed: int, definitions: Definitions) -> list[NoiseSample]:
    """Every variant of one model in one dtype. Errors: those of the model."""
    with threads(1):
        subject = Subject(name, dtype, num, seed)
        floor = least_difference(subject.family, subject.architecture.answers, subject.own, dtype, seed)
        found = []
        for variant, answers in _variants(subject, num, seed, definitions):
            compared = subject.compare(answers)
            found.append(NoiseSample(name, dtype, variant, compared.values, compared.figures, floor))
        return found


def _variants(subject: Subject, num: int, seed: int, definitions: Definitions) -> Iterator[tuple[str, Answers]]:
    name, dtype = subject.name, subject.dtype
    yield "again", subject.answers()
    yield "alone", Subject(name, dtype, num, seed, _ALONE).answers(_MOST_ALONE if subject.makes_tokens else None)
    yield "other batches", Subject(name, dtype, num, seed, _CHUNKED if subject.makes_tokens else _OTHER).answers()
    with threads(2):
        again = subject.answers()
    yield "threads", again
    with OtherOrder():
        again = subject.answers()
    yield "other sums", again
    yield "definitions", definitions.answers(name, dtype)
    if dtype != "float32":
        exact = Subject(name, "float32", num, seed)
        copy_weights(subject.model, exact.model)
        yield "float32 arithmetic", exact.answers()


def rounded(value: float) -> float:
    """Six digits: what a file holds."""
    return float(f"{value:.6g}")
