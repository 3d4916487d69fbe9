"""What a run that is gone on with must have in common with its beginning, beside the words of its command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastkernels.bench.run_folder import RunFolder
from fastkernels.errors import RunFolderError, UsageError
from fastkernels.report.compare import hardware

_PACKAGES = ("torch", "triton")
"""Those whose other versions time and round otherwise."""


def header_of(folder: RunFolder, kind: str) -> dict[str, Any]:
    """run.json of a run of that kind. Errors: RunFolderError for another kind, and when it does not say its words."""
    header = folder.header()
    if header.get("kind") != kind:
        raise RunFolderError(
            f"{folder.path} is a run of kind {header.get('kind')!r}; only a run of kind {kind!r} is gone on with."
        )
    if not isinstance(header.get("request"), dict):
        raise RunFolderError(f"{folder.path} is incomplete: its run.json does not say how it was started.")
    return header


def words_of(folder: RunFolder, kind: str, words: dict[str, Any]) -> dict[str, Any]:
    """The words of a command that goes on with a run: what is not said (None) is the run's.

    Errors: RunFolderError for another kind of run, and when its run.json does not say a word either.
    """
    request = header_of(folder, kind)["request"]
    if missing := [name for name, value in words.items() if value is None and name not in request]:
        raise RunFolderError(f"{folder.path} is incomplete: its run.json does not say {', '.join(missing)}.")
    return {name: request[name] if value is None else value for name, value in words.items()}


def known_environment(path: Path, found: dict[str, Any] | None) -> dict[str, Any]:
    """What run.json says that the run ran on. Errors: RunFolderError when it says none."""
    if not isinstance(found, dict) or "packages" not in found:
        raise RunFolderError(f"{path} is incomplete: its run.json does not say what machine it ran on.")
    return found


def difference(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, str] | None:
    """The first thing in which figures of two environments would not mix, as each has it; None when they are alike."""
    there, here = hardware({"environment": before}), hardware({"environment": now})
    if there != here:
        return there, here
    pairs = zip(("fastkernels", *_PACKAGES), _versions(before), _versions(now), strict=True)
    return next(((f"{name} {was}", f"{name} {found}") for name, was, found in pairs if was != found), None)


def refuse_other_machine(path: Path, before: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """A run's figures are published under the one machine and the versions that its run.json names.

    before, now: as `environment` makes it.
    Errors: RunFolderError when run.json says none; UsageError names what differs.
    """
    before = known_environment(path, before)
    unlike = difference(before, now)
    if unlike is None:
        return
    there, here = unlike
    if there == hardware({"environment": before}):
        raise UsageError(
            f"{path} ran on {there}; this machine is {here}. Figures of two machines do not mix in one run: go on with "
            "it there, or start a new run here."
        )
    raise UsageError(
        f"{path} ran with {there}; here is {here}. What is judged or timed may differ: go on with it under {there}, or "
        "start a new run."
    )


def _versions(environment: dict[str, Any]) -> list[str]:
    """Of FastKernels with its commit, where it runs from a checkout; edits of files, which a commit does not name, are
    not told apart."""
    commit = (environment.get("commit") or "").removesuffix("+")
    ours = f"{environment.get('fastkernels')}{commit and f' at {commit}'}"
    return [ours, *(environment["packages"].get(name, "(absent)") for name in _PACKAGES)]
