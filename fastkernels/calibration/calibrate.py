"""Families measured one after another: the record of every sample, and the manifest's entries that follow from it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from multiprocessing import active_children, get_context
from typing import Any

from fastkernels.bench.environment import environment
from fastkernels.calibration.bounds import floor_sentence
from fastkernels.calibration.cliff import Chance, Curve, measure_cliff
from fastkernels.calibration.noise import VARIANTS, NoiseSample, noise_of_models
from fastkernels.calibration.plan import DAMAGED, noise_models, require_checkpoints
from fastkernels.calibration.subject import DEVICE
from fastkernels.calibration.thresholds import MARGIN, Thresholds, find_thresholds
from fastkernels.errors import EnvironmentProblem
from fastkernels.harness.sandbox import die_with_parent
from fastkernels.scoring.items import Family

SCHEMA_VERSION = 1

Report = Callable[[str], None]
"""Told what is done next."""

DISCREPANCIES: dict[Family, str] = {
    Family.LANGUAGE: "share of places where the greedy token is not the reference's after the same tokens",
    Family.SPEECH: "word error rate, or edits a token where there is no text",
    Family.EMBEDDING: "1 - cosine, mean over rows, the worst of the named vectors",
    Family.CLASSIFICATION: "1 - mean overlap of the 1 and the 5 likeliest classes",
    Family.DETECTION: "1 - mean IoU of the best one-to-one matching within labels",
    Family.RANKING: "1 - nDCG in the reference's order",
    Family.IMAGE: "1 - SSIM",
    Family.TRAJECTORY: "mean squared error over the reference's mean square",
    Family.RENDERING: "mean absolute difference of values in [0, 1]",
}


def calibrate(
    families: Sequence[Family],
    command: str,
    seed: int = 0,
    report: Report = lambda stage: None,
    keep: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
    """Plain JSON: by family every sample, curve and threshold, with what was run, when, and on what.

    keep: given the record of what is measured so far after each family.
    Errors: CheckpointError when a trained model is missing, EnvironmentProblem when data or a process are,
    UnsupportedError when a family has no cliff.
    """
    require_checkpoints(families)
    record: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "kind": "calibration", "variants": dict(VARIANTS)}
    record["families"] = {}
    try:
        with ProcessPoolExecutor(1, get_context("spawn"), die_with_parent) as beside, _ended_with_an_error(beside):
            noise = {f: beside.submit(noise_of_models, {f: noise_models(f)}, seed) for f in families}
            for family in families:
                curves, chances = _cliffs(family, seed, report)
                report(f"{family}: models against themselves")
                samples, cannot_run = noise[family].result()[family]
                record["families"][str(family)] = {
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "command": command,
                    "seed": seed,
                    "environment": environment(DEVICE),
                    "cannot_run": cannot_run,
                    **_family_record(
                        family, find_thresholds(family, samples, curves, chances), samples, curves, chances
                    ),
                }
                keep(record)
    except BrokenProcessPool as error:
        raise EnvironmentProblem("The process that measures noise was ended; is there too little memory?") from error
    return record


@contextlib.contextmanager
def _ended_with_an_error(pool: Executor) -> Iterator[None]:
    """Whatever ends this early, an interrupt too, waits for no family that the pool has still to measure."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in active_children():
            process.terminate()
        raise


def _cliffs(family: Family, seed: int, report: Report) -> tuple[list[Curve], list[Chance]]:
    curves: list[Curve] = []
    chances: list[Chance] = []
    for model in DAMAGED[family]:
        more, chance = measure_cliff(model, seed, lambda stage: report(f"{family}: {stage}"))
        curves += more
        chances.append(chance)
    return curves, chances


def _family_record(
    family: Family,
    thresholds: Thresholds,
    samples: Sequence[NoiseSample],
    curves: Sequence[Curve],
    chances: Sequence[Chance],
) -> dict[str, Any]:
    return {
        "discrepancy": DISCREPANCIES[family],
        "margin": MARGIN,
        "floor": floor_sentence(family),
        "good": {
            dtype: {**good.to_json(), "accepted_damaged": good.accepted(curves)}
            for dtype, good in thresholds.good.items()
        },
        "bad": thresholds.bad.to_json(),
        "noise": [sample.to_json() for sample in samples],
        "curves": [curve.to_json() for curve in curves],
        "random_answers": [chance.to_json() for chance in chances],
    }
