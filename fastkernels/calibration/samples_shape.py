"""What is relied on in a file of a calibration's samples, as types: another is added to it, and all of it is drawn."""

from __future__ import annotations

from typing import Any, TypedDict

from fastkernels.report.load import Environment, environment_fault
from fastkernels.report.shapes import Finite, fault


class _Good(TypedDict):
    value: Finite
    largest: Finite
    decided_by: str
    left_out: dict[str, Finite]
    accepted_damaged: list[int]


class _Bad(TypedDict):
    value: Finite
    decided_by: str
    random: Finite


class _Noise(TypedDict):
    model: str
    dtype: str
    variant: str
    values: list[Finite]


class _Knee(TypedDict):
    discrepancy: Finite
    retained: Finite
    distance: Finite


class _Point(TypedDict):
    severity: Finite
    discrepancy: Finite
    quality: Finite
    retained: Finite


class _Curve(TypedDict):
    model: str
    damage: str
    measure: str
    knee: _Knee | None
    points: list[_Point]


class _Family(TypedDict):
    created: str
    command: str
    environment: Environment
    discrepancy: str
    floor: str
    good: dict[str, _Good]
    bad: _Bad
    noise: list[_Noise]
    curves: list[_Curve]


class _Samples(TypedDict):
    families: dict[str, _Family]


def samples_fault(record: Any) -> str:
    """What of the file's content is not so, by its place; "" of a whole one."""
    if not isinstance(record, dict):
        return "it is not a JSON object"
    if found := fault(record, _Samples, ""):
        return found
    return next((w for name, one in record["families"].items() if (w := _family_fault(f"families.{name}", one))), "")


def _family_fault(where: str, family: Any) -> str:
    """What the types alone do not say."""
    if found := environment_fault(family["environment"]):
        return f"{where}.{found}"
    if wrong := [dtype for dtype, good in family["good"].items() if len(good["accepted_damaged"]) != 2]:
        return f"{where}.good.{wrong[0]}.accepted_damaged is not of two numbers"
    holders = [(where, family, "good"), (where, family, "noise"), (where, family, "curves")]
    holders += [(f"{where}.noise[{number}]", sample, "values") for number, sample in enumerate(family["noise"])]
    holders += [(f"{where}.curves[{number}]", curve, "points") for number, curve in enumerate(family["curves"])]
    return next((f"{place}.{name} is empty" for place, holder, name in holders if not holder[name]), "")
