"""A run folder read with care: what a report relies on is there, or one message says what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from fastkernels import env
from fastkernels.bench.run_folder import RunFolder
from fastkernels.errors import RunFolderError
from fastkernels.harness.records import OpRecord, TimingRecord
from fastkernels.harness.verdict import Speed, Verdict
from fastkernels.report.eval_view import check_eval
from fastkernels.report.shapes import Finite, Measured, fault

_LATER: dict[type, dict[str, Any]] = {
    OpRecord: {"set_sha256": ""},
    TimingRecord: {"init": "", "late_us": 0.0, "varied": []},
}
"""What runs of before do not have, and what it is there."""


class _Gpu(TypedDict):
    name: str
    num_sms: int
    memory_bytes: int
    l2_bytes: int
    cuda: str | None


class Environment(TypedDict):
    """What a page says of the machine. packages: versions by name, torch's among them."""

    fastkernels: str
    commit: NotRequired[str | None]
    cpu: NotRequired[str | None]
    num_cores: NotRequired[int | None]
    device: str
    packages: dict[str, str]
    gpu: NotRequired[_Gpu]


class _Set(TypedDict):
    name: str
    sha256: str


class _Run(TypedDict):
    run_id: str
    kind: str
    created: str
    status: str
    seconds: NotRequired[Finite]
    request: dict[str, Any]
    environment: Environment
    sets: NotRequired[list[_Set]]
    ops: list[dict[str, Any]]


class _Speed(TypedDict):
    """Of a timed case of an op that passed."""

    ratio: Measured
    speed: Speed


class _Null(TypedDict):
    outcome: Literal["rejected", "passed", "not applicable"]


def find_run(name: Path) -> Path:
    """A folder by path, or by name among the runs of FASTKERNELS_HOME.

    Errors: RunFolderError when there is none.
    """
    for path in (name, env.home() / name):
        if path.is_dir():
            return path
    if name.is_file():
        raise RunFolderError(f"{name} is a file; a run is a folder with run.json and results.json.")
    raise RunFolderError(f"There is no run folder {name}, nor one of that name in {env.home()}.")


def load_results(run: Path) -> dict[str, Any]:
    """results.json of a run, or what there is of an unfinished one.

    Errors: RunFolderError when a file is missing, cut off, of another version or lacks a field, or holds in one what
    cannot be there.
    """
    results = RunFolder(run).results()
    _check(run, "", results, _Run)
    if found := environment_fault(results["environment"]):
        raise RunFolderError(f"{run}: {found}; the results are damaged.")
    for name in ("commit", "cpu", "num_cores"):
        results["environment"].setdefault(name, None)
    for number, record in enumerate(results["ops"]):
        _check_op(run, f"ops[{number}]", record)
    if results["kind"] == "eval":
        check_eval(run, results)
    return results


def environment_fault(environment: dict[str, Any]) -> str:
    """As shapes.fault, of what the type alone does not say."""
    return "" if "torch" in environment["packages"] else "environment.packages lacks torch"


def _check_op(run: Path, where: str, record: dict[str, Any]) -> None:
    _add_later(OpRecord, record)
    for part in ("timings", "suspected"):
        for timing in record[part] if isinstance(record.get(part), list) else []:
            _add_later(TimingRecord, timing)
    _check(run, where, record, OpRecord)
    for index, timing in enumerate(record["timings"] if record["verdict"] == Verdict.PASSED else []):
        _check(run, f"{where}.timings[{index}]", timing, _Speed)
    for index, null in enumerate(record["nulls"]):
        _check(run, f"{where}.nulls[{index}]", null, _Null)


def _add_later(kind: type, value: Any) -> None:
    if isinstance(value, dict):
        for name, absent in _LATER[kind].items():
            value.setdefault(name, absent)


def _check(run: Path, where: str, value: object, kind: type) -> None:
    if found := fault(value, kind, where):
        raise RunFolderError(f"{run}: {found}; the results are damaged.")
